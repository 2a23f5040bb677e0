"""Name retrieval on held-out pictures while a stage aligns."""

import json
import shutil

import pytest

from vistoken.train.probe import NameProbe
from vistoken.train.run import train

from .stages import ALIGN, configuration


@pytest.fixture(scope="module")
def held_out(data, tmp_path_factory):
    """One picture under other words than those of the training pictures."""
    root = tmp_path_factory.mktemp("held_out")
    shutil.copytree(data / "images", root / "images")
    scene = json.loads((data / "train.scenes.jsonl").read_text().splitlines()[0])
    scene["objects"][0]["name"] = "bowl"
    (root / "val.scenes.jsonl").write_text(json.dumps(scene) + "\n")
    (root / "val.jsonl").write_text((data / "train.jsonl").read_text().splitlines()[0] + "\n")
    return root / "val.jsonl"


def test_held_out_names_are_logged_while_aligning(data, held_out, tmp_path, monkeypatch):
    probed = []
    probe = NameProbe.__call__

    def see(self, model):
        probed.append({word for p in self.pictures for word in p.scene.names})
        return probe(self, model)

    monkeypatch.setattr(NameProbe, "__call__", see)
    # the log interval is no multiple of the probe's: still once in every interval of the probe
    stage = ALIGN | {"steps": 12, "log_every": 2, "retrieval_every": 5}
    config = configuration(data, tmp_path / "a", [stage], validation=[str(held_out)])
    train(config)
    assert probed == [{"bowl"}] * 3  # steps 6 and 10, and the end
    lines = [json.loads(line) for line in (config.output / "metrics.jsonl").open()]
    assert [line["step"] for line in lines if "retrieval/names" in line] == [6, 10]
    shown = next(line for line in lines if "retrieval/names" in line)
    assert shown["retrieval/loss"] > 0
    assert "train_retrieval/names" in shown  # beside it, so that over-fitting is seen
