"""A stage changes what it names and nothing else, each part at its own rate."""

import pytest
import torch

from vistoken.train import stage_run
from vistoken.train.arguments import schedule
from vistoken.train.run import train
from vistoken.train.trainer import VistokenTrainer

from .stages import JOINT, configuration

FIRST = {
    "name": "first",
    "groups": {
        "connector": {"train": "full", "lr": 1e-3},
        "spatial": {"train": "full", "lr": 5e-4},
    },
    "steps": 8,
    "warmup": 0.25,
    "log_every": 1,
}
SECOND = JOINT | {
    "name": "second",
    "needs": "first",
    "groups": {**FIRST["groups"], "language": {"train": "lora", "lr": 2e-3, "lora": {"r": 2}}},
}


def whole(model):
    """Every weight and buffer, wherever it is wrapped."""
    return {
        name.replace(".base_layer", ""): tensor.detach().clone()
        for name, tensor in model.state_dict().items()
    }


@pytest.fixture(scope="module")
def watched(data, tmp_path_factory):
    """Of both stages: all tensors before and after, and the rates of every step."""
    states, rates = {}, {}
    made, written, step = stage_run._trainer, stage_run.write_trained, VistokenTrainer.training_step

    def trainer(run, stage, *rest):
        states[stage.name] = [whole(run.model)]
        return made(run, stage, *rest)

    def training_step(self, *args):
        found = rates.setdefault(self.stage.name, [])
        found.append({g["name"]: g["lr"] for g in self.optimizer.param_groups})
        return step(self, *args)

    def end(model, path):
        states[path.parent.name].append(whole(model))
        written(model, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage_run, "_trainer", trainer)
        patch.setattr(VistokenTrainer, "training_step", training_step)
        patch.setattr(stage_run, "write_trained", end)
        train(configuration(data, tmp_path_factory.mktemp("gating") / "a", [FIRST, SECOND]))
    return states, rates


@pytest.mark.parametrize(
    ("stage", "parts"),
    [("first", ("multi_modal_projector",)), ("second", ("multi_modal_projector", "lora_"))],
)
def test_all_other_tensors_are_the_same_bits(watched, stage, parts):
    before, after = watched[0][stage]
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert [name for name in changed if not any(part in name for part in parts)] == []
    for part in parts:
        assert any(part in name for name in changed), part
    frozen = set(before) - changed
    assert any("vision_tower" in name for name in frozen)
    assert any("language_model" in name for name in frozen)


@pytest.mark.parametrize(("stage", "settings"), [("first", FIRST), ("second", SECOND)])
def test_every_part_has_its_rate_at_every_step(watched, stage, settings):
    rates, steps = watched[1][stage], settings["steps"]
    assert len(rates) == steps
    warmup = settings.get("warmup", 0.03)
    for number, groups in enumerate(rates):
        factor = schedule(number / steps, "cosine", warmup)
        for name, rate in groups.items():
            own = settings["groups"][name.removesuffix("-no-decay")]["lr"]
            assert rate == pytest.approx(own * factor), (number, name)
    assert {name.removesuffix("-no-decay") for name in rates[0]} == set(settings["groups"])
    if stage == "first":  # start, end of the warm-up, middle of what follows
        assert [round(rates[n]["connector"] / 1e-3, 4) for n in (0, 2, 5)] == [0.0, 1.0, 0.5]
