"""Official INF-LLaVA releases: recognised, converted, named both ways, refused when broken."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import vistoken
from vistoken.convert.llava import convert_llava_sp
from vistoken.core.errors import WeightsError
from vistoken.core.tables import VIEW
from vistoken.systems.inf_llava.release_keys import InfLlavaKeys

TOWER_WIDTH, HIDDEN = 16, 32
SPATIAL = {
    **{f"attention.linears.{i}": (TOWER_WIDTH, TOWER_WIDTH) for i in range(4)},
    "ffn_crop.0": (TOWER_WIDTH // 16, TOWER_WIDTH),
    "ffn_crop.2": (TOWER_WIDTH // 2, TOWER_WIDTH // 16),
    "ffn_stride.0": (TOWER_WIDTH // 16, TOWER_WIDTH),
    "ffn_stride.2": (TOWER_WIDTH // 2, TOWER_WIDTH // 16),
    "attention.ln": (TOWER_WIDTH,),
    "ln_fuse": (TOWER_WIDTH,),
}


@pytest.fixture
def release(golden: Path, tmp_path: Path) -> Path:
    """A merged release on the golden language model, its tower beside it."""
    source = golden / "llava-sp/release_pooling"
    shutil.copytree(source / "tiny-clip", tmp_path / "tiny-clip", copy_function=shutil.copy)
    out = tmp_path / "inf"
    out.mkdir()
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(source / "tiny-vicuna" / name, out / name)
    shutil.copy(source / "llava-sp-pooling-lora" / "config.json", out / "config.json")
    (out / "config.json").chmod(0o644)
    weights = load_file(source / "tiny-vicuna" / "model.safetensors")
    weights = {name: tensor.float() for name, tensor in weights.items()}
    generator = torch.Generator().manual_seed(1)
    shapes = {f"spatial_embed.{name}": shape for name, shape in SPATIAL.items()}
    shapes |= {"mm_projector.0": (HIDDEN, TOWER_WIDTH), "mm_projector.2": (HIDDEN, HIDDEN)}
    for name, shape in shapes.items():
        weights[f"model.{name}.weight"] = torch.randn(shape, generator=generator) * 0.3
        weights[f"model.{name}.bias"] = torch.randn(shape[0], generator=generator) * 0.3
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    return out


def configure(release: Path, **values: Any) -> None:
    path = release / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_conversion(release: Path, tmp_path: Path, picture: Any) -> None:
    report = convert_llava_sp(release, tmp_path / "out")
    assert report.counts["connector"] == 2 * len(SPATIAL) + 4
    assert all(row.target for row in report.rows)
    model, processor = vistoken.load(tmp_path / "out", device="cpu", dtype="float32")
    weights = load_file(release / "model.safetensors")
    state = model.model.multi_modal_projector.state_dict()
    names = InfLlavaKeys.official_names(state)
    spoken = {name for name in weights if "spatial_embed" in name or "mm_projector" in name}
    assert {f"model.{name}" for name in names.values()} == spoken
    assert all(torch.equal(state[ours], weights[f"model.{name}"]) for ours, name in names.items())
    inputs = processor.image_processor([picture(300, 200, 1)])
    assert len(inputs["view_table"]) == 19  # n = 3
    side = int(VIEW.get(inputs["view_table"], "height")[0])
    with torch.no_grad():
        (tokens,) = model.get_image_features(**inputs).pooler_output
    assert len(tokens) == (side // model.model.plan.spec.towers[0].stride) ** 2


def test_views_follow_the_config(release: Path, tmp_path: Path) -> None:
    configure(release, image_aspect_ratio="square")
    convert_llava_sp(release, tmp_path / "out")
    stored = json.loads((tmp_path / "out" / "processor_config.json").read_text())
    assert stored["image_processor"]["pipeline"]["views"] == {
        "part": "inf-dcm",
        "options": {"n": 3, "fit": "square"},
        "name": "inf-dcm",
    }


def test_tiles_and_strides_do_not_mix(release: Path, tmp_path: Path) -> None:
    side = 336
    configure(release, image_aspect_ratio="anyres", image_grid_pinpoints=[[side, 2 * side]])
    with pytest.raises(WeightsError, match="cannot be combined|no multiple of the vision tower"):
        convert_llava_sp(release, tmp_path / "out")


def drop(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda weights: weights.pop(name)


def widen(weights: dict[str, Tensor]) -> None:
    weights["model.spatial_embed.ln_fuse.weight"] = torch.zeros(TOWER_WIDTH + 1)


def add_foreign(weights: dict[str, Tensor]) -> None:
    weights["model.spatial_embed.ffn_gate.weight"] = torch.zeros(2)


BROKEN = [
    (drop("model.spatial_embed.ln_fuse.bias"), "model.spatial_embed.ln_fuse.bias is missing from"),
    (drop("model.mm_projector.0.weight"), "lacks mm_projector.0.weight"),
    (widen, r"spatial_embed.ln_fuse.weight in model.safetensors is \(17,\) where"),
    (add_foreign, "spatial_embed.ffn_gate.weight"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN, ids=["bias", "projector", "shape", "extra"])
def test_broken_releases_are_refused(
    release: Path, tmp_path: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    weights = load_file(release / "model.safetensors")
    change(weights)
    save_file(weights, release / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=message):
        convert_llava_sp(release, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unshared_attention_has_no_official_name() -> None:
    with pytest.raises(WeightsError, match="releases have shared attention"):
        InfLlavaKeys.official_names(
            {"inf-dem.enhancement.local_attention.query.weight": torch.zeros(1)}
        )
