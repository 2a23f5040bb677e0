"""An official YOPO release: LLaVA's weights, a config that asks for the mechanism, a head mask."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from vistoken.convert.llava import convert_llava_sp
from vistoken.core.errors import UsageError, WeightsError

GOLDEN = Path(__file__).parents[1] / "golden" / "llava-sp"
OPTIONS = {"attncut_w": 5, "layercut_num": 1, "headcut_num": 2, "mlpcut_ratio": 2}


@pytest.fixture
def release(tmp_path):
    """A release with YOPO's options in its config; and its layers and heads."""
    shutil.copytree(GOLDEN / "release_pooling", tmp_path / "golden", copy_function=shutil.copy)
    for path in (tmp_path / "golden").rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    folder = tmp_path / "golden" / "llava-sp-pooling-lora"
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **OPTIONS, "sprompt_len": 35}))
    return folder, values["num_hidden_layers"], values["num_attention_heads"]


def mechanisms(out):
    return json.loads((out / "config.json").read_text())["decoder_config"]["mechanisms"]


def test_the_config_becomes_the_mechanism(release, tmp_path):
    folder, layers, heads = release
    keep = np.ones((layers, heads), dtype=bool)
    keep[-1, 0] = False
    np.save(folder / "heads.npy", keep)
    convert_llava_sp(folder, tmp_path / "out")
    (mechanism,) = mechanisms(tmp_path / "out")
    assert mechanism["part"] == "yopo"
    assert mechanism["options"] == {
        "mode": "exact",
        "window": 5,
        "layer_cut": 1,
        "mlp_ratio": 2,
        "head_keep": ["1" * heads] * (layers - 1) + ["0" + "1" * (heads - 1)],
    }


def test_a_head_mask_that_is_missing_or_does_not_fit(release, tmp_path):
    folder, layers, heads = release
    with pytest.raises(WeightsError, match=r"holds 0 \.npy files"):
        convert_llava_sp(folder, tmp_path / "out")
    np.save(folder / "heads.npy", np.ones((layers, heads + 1)))
    with pytest.raises(UsageError, match=f"{heads + 1} heads"):
        convert_llava_sp(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
