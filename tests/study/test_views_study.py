"""The packaged study of views: every arm runs; tiles show what the whole picture cannot."""

import json

import pytest

from vistoken.core.tables import VIEW, ViewKind
from vistoken.data.scenes.large import _LEAST, _MOST
from vistoken.study.grid import make_grid
from vistoken.study.report import markdown
from vistoken.study.run import run_study
from vistoken.study.settings import load_study

ARMS = ["pad", "anyres", "uhd-slices", "msac", "inf-dcm"]


@pytest.mark.slow
def test_every_arm_runs_and_is_reported(tmp_path):
    study = load_study("views").model_copy(update={"seeds": (0,), "latency_rounds": 1})
    grid = make_grid(study, "toy")
    report = run_study(grid, tmp_path / "out")
    assert report["cells"] == {"finished": 5, "all": 5}
    assert list(report["arms"]) == ARMS
    for arm, values in report["arms"].items():
        rows = values["tasks"]["val"]
        assert set(rows) == {"shape", "digit", "letter", "small objects", "rendered text", "all"}
        assert rows["all"]["n"] == 6
        assert (rows["all"]["difference"] is None) == (arm == "pad")
        assert values["cost"]["latency"]["ms"] > 0
        assert values["cost"]["encode_flops"] > 0
    costs = {arm: values["cost"] for arm, values in report["arms"].items()}
    assert costs["pad"]["views"] == 1
    assert costs["pad"]["visual_tokens"] == costs["inf-dcm"]["visual_tokens"] == 64
    assert costs["anyres"]["views"] == costs["uhd-slices"]["views"] == 10
    assert costs["anyres"]["visual_tokens"] == 160
    assert costs["msac"]["views"] == 9 + 4 + 1
    page = markdown(report)
    assert "| ms |" in page
    assert "rendered text" in page
    again = run_study(grid, tmp_path / "out")
    assert again["arms"] == report["arms"]
    assert json.loads((tmp_path / "out/study.json").read_text())["arms"].keys() == set(ARMS)


@pytest.mark.parametrize("size", ["tiny", "full"])
def test_arms_are_trained_alike_and_things_are_legible_in_tiles_only(size):
    grid = make_grid(load_study("views"), size)
    assert list(grid.arms) == ARMS
    assert len(grid.cells) == 15
    for arm in ARMS:
        recipe = grid.arm_recipe(arm)
        config = recipe.model_config_for()
        table = recipe.pipeline(config).view_function().view_table(1344, 1344)
        scale = 1 / VIEW.get(table, "scale_y")
        whole = VIEW.get(table, "kind") == int(ViewKind.GLOBAL)
        patch = 14
        if size == "tiny":
            assert (scale[whole] * 1344 * _MOST).max() < 0.7 * patch
            # at the size of a patch or more
            assert arm == "pad" or (scale[~whole] * 1344 * _LEAST).max() >= patch
        assert arm == "pad" or scale[~whole].max() >= 2 * scale[whole].max()
