"""Objectives are parts: a package brings its own, which the library never heard of."""

import pytest

from vistoken.core import registry
from vistoken.core.errors import UsageError
from vistoken.core.objectives import Objective, StepLoss
from vistoken.core.registry import PartEntry, part_table
from vistoken.train.log_file import read_records
from vistoken.train.run import train

from .stages import JOINT, configuration

STAGE = JOINT | {"needs": None, "steps": 2}


class Doubled(Objective):
    """Twice the cross-entropy, told of the time."""

    seen: list = []

    def loss(self, batch):
        self.seen.append((batch.clock.step, batch.clock.total))
        states = batch.states()
        found = batch.cross_entropy(states)
        return StepLoss(2 * found.mean, found.targets)

    def scores(self):
        return {"doubled/seen": len(self.seen)}


class NoObjective:
    pass


@pytest.fixture
def brought(monkeypatch):
    """Objectives of another package."""
    here = "tests_objectives"
    monkeypatch.setitem(__import__("sys").modules, here, __import__("types").ModuleType(here))
    module = __import__("sys").modules[here]
    module.Doubled, module.NoObjective = Doubled, NoObjective
    ours = list(part_table().values())
    theirs = [
        PartEntry("objective", "doubled", f"{here}:Doubled", "twice"),
        PartEntry("objective", "none", f"{here}:NoObjective", "no objective"),
    ]

    class Point:
        value = "third.party:PARTS"

        def load(self):
            return [*ours, *theirs]

    monkeypatch.setattr(registry, "entry_points", lambda group: [Point()])
    part_table.cache_clear()
    yield
    monkeypatch.undo()
    part_table.cache_clear()


def test_a_stage_trains_by_an_objective_of_another_package(brought, data, tmp_path):
    plain = configuration(data, tmp_path / "a", [STAGE])
    doubled = configuration(data, tmp_path / "b", [STAGE | {"objective": "doubled"}])
    losses = []
    for config in (plain, doubled):
        train(config)
        records = [r for r in read_records(config.output / "metrics.jsonl") if "loss" in r]
        losses.append(records[0]["loss"])
    assert losses[1] == pytest.approx(2 * losses[0], rel=1e-5)
    assert Doubled.seen == [(0, 2), (1, 2)]
    assert records[0]["doubled/seen"] == 1
    assert records[0]["exact/name"] is not None  # counted by the library


def test_unknown_objectives_and_parts_that_are_none(brought, data, tmp_path):
    for name, message in (
        ("double", "did you mean 'doubled'"),
        ("none", "is not a subclass of vistoken.core.objectives.Objective"),
    ):
        with pytest.raises(UsageError, match=message):
            configuration(data, tmp_path / "a", [STAGE | {"objective": name}])
