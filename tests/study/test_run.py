"""A tiny study end to end: run, killed, gone on with, reported."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from vistoken.core.errors import UsageError
from vistoken.study import cell as cells
from vistoken.study.grid import make_grid
from vistoken.study.run import run_study
from vistoken.study.settings import load_study


class Killed(BaseException):
    """What no handler of ours may catch."""


def test_a_study_that_is_killed_goes_on(study_file, splits, tmp_path, monkeypatch):
    grid = make_grid(load_study(study_file))
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        # the second cell is killed between training and asking
        asked = []

        def ask(*arguments, **options):
            if len(asked) == 1:
                raise Killed
            asked.append(1)
            return evaluate(*arguments, **options)

        evaluate = cells.evaluate
        patch.setattr(cells, "evaluate", ask)
        with pytest.raises(Killed):
            run_study(grid, out, data=splits)
    report = json.loads((out / "study.json").read_text("utf-8"))
    assert report["cells"] == {"finished": 1, "all": 4}
    assert "Not finished: 1 of 4 cells" in (out / "study.md").read_text("utf-8")
    first = (out / "cells/mlp/0/cell.json").read_bytes()
    run_log = (out / "cells/free-tokens/0/run/metrics.jsonl").read_bytes()

    trained = []
    train = cells.train
    monkeypatch.setattr(
        cells, "train", lambda config, **o: trained.append(o["resume"]) or train(config, **o)
    )
    report = run_study(grid, out, data=splits)
    # the finished cell is left alone, the killed one goes on; the second seed has its shared stage
    assert trained == [True, False, False, False]
    _check_starts(out)
    assert (out / "cells/mlp/0/cell.json").read_bytes() == first
    assert (out / "cells/free-tokens/0/run/metrics.jsonl").read_bytes() == run_log
    assert report["cells"] == {"finished": 4, "all": 4}
    rows = report["arms"]["free-tokens"]["tasks"]["val"]
    assert list(rows) == ["colour", "seeing", "all"]
    assert rows["all"]["n"] == 6  # captions were left out
    assert len(rows["all"]["difference"]["seeds"]) == 2
    assert report["arms"]["mlp"]["tasks"]["val"]["all"]["difference"] is None
    assert report["arms"]["free-tokens"]["cost"]["latency"]["rounds"] == 3
    table = (out / "study.md").read_text("utf-8")
    assert "| free-tokens | 2 | 1 | 22 |" in table
    page = (out / "study.html").read_text("utf-8")
    assert page.count("<svg") == 3
    assert "http" not in page

    # a cell by itself, and a study that has changed
    shutil.rmtree(out / "cells/mlp/1")
    run_study(grid, out, data=splits, only=["mlp/1"])
    assert (out / "cells/mlp/1/cell.json").is_file()
    changed = make_grid(load_study(study_file), changes={"train.stages.joint.steps": 5})
    with pytest.raises(UsageError, match="begun with another study file"):
        run_study(changed, out, data=splits)


def _check_starts(out):
    """All arms of a seed start from what its shared stage made of the projector."""
    for seed in "01":
        made = load_file(out / f"shared/{seed}/run/stages/first/trained.safetensors")
        for arm in ("mlp", "free-tokens"):
            start = load_file(out / f"cells/{arm}/{seed}/init/trained.safetensors")
            assert made.keys() <= start.keys()
            assert all(torch.equal(start[name], tensor) for name, tensor in made.items())
            log = (out / f"cells/{arm}/{seed}/run/metrics.jsonl").read_text("utf-8")
            assert '"stage": "first"' not in log
    assert not torch.equal(
        *(
            load_file(out / f"shared/{s}/run/stages/first/trained.safetensors")[
                "model.multi_modal_projector.llava-sp.patch_projector.linear_1.weight"
            ]
            for s in "01"
        )
    )


def test_the_packages_study_at_its_toy_size(tmp_path):
    """Every arm, composed shapes, shared alignment, table: in seconds."""
    study = load_study("spatial-tokens").model_copy(update={"seeds": (0,), "latency_rounds": 1})
    report = run_study(make_grid(study, "toy"), tmp_path / "out")
    assert report["cells"] == {"finished": 9, "all": 9}
    assert report["arms"]["row-col"]["cost"]["visual_tokens"] == 16
    assert report["arms"]["sp-pooling"]["cost"]["visual_tokens"] > 16
    table = (tmp_path / "out" / "study.md").read_text("utf-8")
    assert all(f"| {arm} | 1 |" in table for arm in study.arms)
    assert "| free-tokens |" in table.split("## Difference to mlp, val")[1]
