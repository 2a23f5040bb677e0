"""Importer: names and options of official LLaVA-UHD v1 weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import vistoken
from vistoken.convert.llava import convert_llava_sp
from vistoken.core.errors import WeightsError
from vistoken.core.parts import StageContext
from vistoken.core.registry import load_part, make_config, part_names
from vistoken.systems.llava_uhd.config import UhdResamplerConfig
from vistoken.systems.llava_uhd.release_keys import UhdKeys
from vistoken.systems.llava_uhd.resampler import UhdResampler

STEM = "mm_projector."
NAMES = {
    f"{STEM}{name}"
    for name in (
        "query",
        "pos_embed",
        "proj",
        "kv_proj.weight",
        "attn.in_proj_weight",
        "attn.in_proj_bias",
        "attn.out_proj.weight",
        "attn.out_proj.bias",
        "ln_q.weight",
        "ln_q.bias",
        "ln_kv.weight",
        "ln_kv.bias",
        "ln_post.weight",
        "ln_post.bias",
    )
}


def stage_of(grid=4):
    return UhdResampler(UhdResamplerConfig(grid), StageContext((24,), 24, (4, 4), 32))


def release(grid=4):
    state = stage_of(grid).state_dict()
    return {name: state[ours] for ours, name in UhdKeys.official_names(state).items()}


def test_names_are_the_released_ones_and_load_strictly(case):
    assert set(release()) == NAMES
    _, tensors = case("spatial_resampler_g4")
    official = {k.replace("w.", STEM, 1): v for k, v in tensors.items() if k.startswith("w.")}
    assert UhdKeys.recognises(official)
    options = UhdKeys.options(official, (8, 8))
    assert options == {"grid": 4, "attention": "regions", "compat": "official"}
    config = make_config(UhdResamplerConfig, options, "uhd-resampler")
    stage = UhdResampler(config, StageContext((24,), 24, (8, 8), 32))
    names = UhdKeys.official_names(stage.state_dict())
    stage.load_state_dict({ours: official[name] for ours, name in names.items()}, strict=True)


def test_options_are_read_from_the_weights():
    assert UhdKeys.options(release(8), (24, 24))["attention"] == "all"
    assert UhdKeys.options(release(12), (24, 24))["grid"] == 12
    broken = release() | {f"{STEM}query": torch.zeros(7, 32)}
    with pytest.raises(WeightsError, match="7 queries form no square"):
        UhdKeys.options(broken, (8, 8))


def test_nobody_else_claims_these_weights():
    claiming = [n for n in part_names("importer") if load_part("importer", n).recognises(NAMES)]
    assert claiming == ["llava-uhd"]
    assert not UhdKeys.recognises({f"{STEM}0.weight", f"{STEM}0.bias"})


BASES = Path(__file__).parents[2] / "golden" / "llava-sp" / "release_pooling"


@pytest.fixture
def folder(tmp_path):
    """A first-stage release on the tiny language model and tower of another release."""
    for name in ("tiny-clip", "tiny-vicuna"):
        shutil.copytree(BASES / name, tmp_path / name, copy_function=shutil.copy)
    (tmp_path / "uhd").mkdir()
    config = json.loads((BASES / "llava-sp-pooling-lora" / "config.json").read_text())
    config["mm_projector_type"] = "adapt_spatial_resampler"
    (tmp_path / "uhd" / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    stage = UhdResampler(UhdResamplerConfig(4), StageContext((16,), 16, (4, 4), 32))
    names = UhdKeys.official_names(stage.state_dict())
    weights = {f"model.{names[n]}": t.clone() for n, t in stage.state_dict().items()}
    torch.save(weights, tmp_path / "uhd" / "mm_projector.bin")
    return tmp_path / "uhd", weights


def test_a_release_becomes_a_model_that_runs(folder, tmp_path, picture):
    source, weights = folder
    convert_llava_sp(source, tmp_path / "out", base=tmp_path / "tiny-vicuna")
    model, processor = vistoken.load(tmp_path / "out", device="cpu", dtype="float32")
    state = model.model.multi_modal_projector.state_dict()
    for name, tensor in weights.items():
        ours = name.replace("model.mm_projector", "uhd-resampler")
        assert torch.equal(state[ours], tensor)
    spec = processor.image_processor.spec
    assert (spec.views.part, spec.layout.part) == ("uhd-slices", "uhd-schema")
    assert spec.connector[0].options["compat"] == "official"
    ids = model.model.layout.vocabulary_ids()
    assert processor.tokenizer.convert_ids_to_tokens(list(ids)) == [",", "<0x0A>"]
    inputs = processor(images=[picture(100, 60)], text=["<image>\nwhat"], return_tensors="pt")
    inputs.pop("mm_token_type_ids", None)
    with torch.no_grad():
        assert model(**inputs).logits.isfinite().all()
