"""Official SAISA releases: told by the projectors in the layers, converted, refused when broken."""

from __future__ import annotations

import json
import re
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
from vistoken.core.parts import FEATURES

LAYERS, TOWER_WIDTH, HIDDEN = 2, 16, 32


@pytest.fixture
def release(golden: Path, tmp_path: Path) -> Path:
    """A merged release on the golden language model, its tower beside it."""
    source = golden / "llava-sp/release_pooling"
    shutil.copytree(source / "tiny-clip", tmp_path / "tiny-clip", copy_function=shutil.copy)
    out = tmp_path / "saisa"
    out.mkdir()
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(source / "tiny-vicuna" / name, out / name)
    shutil.copy(source / "llava-sp-pooling-lora" / "config.json", out / "config.json")
    (out / "config.json").chmod(0o644)
    weights = load_file(source / "tiny-vicuna" / "model.safetensors")
    weights = {name: tensor.float() for name, tensor in weights.items()}
    generator = torch.Generator().manual_seed(1)
    for place in ("model.", *(f"model.layers.{layer}." for layer in range(LAYERS))):
        for number, inputs in (("0", TOWER_WIDTH), ("2", HIDDEN)):
            stem = f"{place}mm_projector.{number}"
            weights[f"{stem}.weight"] = torch.randn(HIDDEN, inputs, generator=generator) * 0.3
            weights[f"{stem}.bias"] = torch.randn(HIDDEN, generator=generator)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    return out


def edit(release: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    weights = load_file(release / "model.safetensors")
    change(weights)
    save_file(weights, release / "model.safetensors", metadata={"format": "pt"})


def test_conversion(release: Path, tmp_path: Path, picture: Any) -> None:
    report = convert_llava_sp(release, tmp_path / "out")
    assert (report.connector, report.result) == ("mlp, saisa", "full")
    assert report.counts == {"connector": 4, "mechanism": 8, "language model": 21}
    assert all(row.target for row in report.rows)
    model, processor = vistoken.load(tmp_path / "out", device="cpu", dtype="float32")
    weights = load_file(release / "model.safetensors")
    (mechanism,) = model.model.stack
    assert mechanism.projectors.sharing == "independent"
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}],
        add_generation_prompt=True,
    )
    inputs = processor(text=text, images=[picture(336, 336, 1)], return_tensors="pt")
    features = model.get_image_features(inputs["pixel_values"], inputs["view_table"])
    with torch.no_grad():
        for layer in range(LAYERS):  # the release's own names and arithmetic
            w = {
                name.rpartition("mm_projector.")[2]: tensor
                for name, tensor in weights.items()
                if name.startswith(f"model.layers.{layer}.mm_projector.")
            }
            encoded = features.side[FEATURES][0]
            hidden = torch.nn.functional.gelu(encoded @ w["0.weight"].T + w["0.bias"])
            expected = hidden @ w["2.weight"].T + w["2.bias"]
            found = mechanism.project(layer, encoded)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        assert torch.isfinite(model(**inputs).logits).all()


def test_resolving_by_name_converts_once(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISTOKEN_CACHE", str(tmp_path / "cache"))
    model, _ = vistoken.load(release, device="cpu", dtype="float32")
    assert [mechanism.name for mechanism in model.model.stack] == ["saisa"]


def drop_layer(weights: dict[str, Tensor]) -> None:
    for name in [name for name in weights if "layers.1.mm_projector" in name]:
        del weights[name]


def add_layer(weights: dict[str, Tensor]) -> None:
    for name in [name for name in weights if "layers.1.mm_projector" in name]:
        weights[name.replace("layers.1", "layers.2")] = weights[name].clone()


def drop_bias(weights: dict[str, Tensor]) -> None:
    del weights["model.layers.0.mm_projector.2.bias"]


def drop_input(weights: dict[str, Tensor]) -> None:
    del weights["model.mm_projector.0.bias"]


def reshape(weights: dict[str, Tensor]) -> None:
    weights["model.layers.0.mm_projector.0.weight"] = torch.zeros(HIDDEN, TOWER_WIDTH + 1)


def add_foreign(weights: dict[str, Tensor]) -> None:
    weights["model.layers.0.mm_gate.weight"] = torch.zeros(2)


BROKEN = [
    (
        drop_layer,
        "projectors inside 1 layers and its language model has 2 layers; it lacks layers.1",
    ),
    (add_layer, "inside 3 layers and its language model has 2 layers; it has too many: layers.2"),
    (drop_bias, "model.layers.0.mm_projector.2.bias is missing from"),
    (drop_input, "model.mm_projector.0.bias is missing from"),
    (reshape, r"layers.0.mm_projector.0.weight in model.safetensors is \(32, 17\) where"),
    (add_foreign, "holds no connector that is known here"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN, ids=lambda v: getattr(v, "__name__", ""))
def test_broken_releases_are_refused(
    release: Path, tmp_path: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    edit(release, change)
    with pytest.raises(WeightsError, match=message):
        convert_llava_sp(release, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_plain_release_gets_no_mechanism(release: Path, tmp_path: Path) -> None:
    def plain(weights: dict[str, Tensor]) -> None:
        for name in [n for n in weights if re.search(r"layers\.\d+\.mm_projector", n)]:
            del weights[name]

    edit(release, plain)
    assert convert_llava_sp(release, tmp_path / "out").connector == "mlp"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["decoder_config"]["mechanisms"] == []
