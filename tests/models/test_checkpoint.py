"""Light checkpoints: what is ours, LoRA, and references that are verified."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageTextToText

from vistoken.core.errors import MachineError, UsageError, WeightsError
from vistoken.models.build import build, references_of
from vistoken.models.checkpoint import merge_adapter, own_state, save_full, save_light
from vistoken.models.recipe import load_recipe, parse_recipe
from vistoken.models.references import Reference

TARGETS = r"model\.language_model\..*\.(q|k|v|o|gate|up|down)_proj"


def trained():
    """A pico model with LoRA and connector weights that training has moved."""
    recipe = load_recipe("pico")
    model, processor = build(recipe)
    model.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS))
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "multi_modal_projector" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.05)
    return recipe, model, processor


def logits(model, processor, picture):
    inputs = processor(text="<image>what?", images=picture(40, 40), return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits


def test_a_light_checkpoint_round_trips_with_its_adapter(tmp_path, picture):
    recipe, model, processor = trained()
    save_light(model, processor, tmp_path / "light", references_of(recipe), torch.float32)
    names = {path.name for path in (tmp_path / "light").iterdir()}
    assert {"config.json", "references.json", "model.safetensors", "adapter"} <= names
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "light")
    assert again.peft_config
    expected = logits(model, processor, picture)
    assert torch.equal(logits(again, processor, picture), expected)
    merge_adapter(again)
    assert not any("lora_" in name for name, _ in again.named_parameters())
    torch.testing.assert_close(logits(again, processor, picture), expected, atol=1e-5, rtol=1e-5)
    save_full(again, processor, tmp_path / "full")
    full = AutoModelForImageTextToText.from_pretrained(tmp_path / "full")
    assert torch.equal(logits(full, processor, picture), logits(again, processor, picture))


def test_only_what_is_ours_is_stored(tmp_path):
    recipe, model, processor = trained()
    save_light(model, processor, tmp_path / "light", references_of(recipe))
    stored = load_file(tmp_path / "light" / "model.safetensors")
    assert stored.keys() == own_state(model).keys()
    assert all(name.startswith("model.multi_modal_projector.") for name in stored)
    assert all(tensor.dtype == torch.bfloat16 for tensor in stored.values())


def test_faults_are_named(tmp_path):
    recipe, model, processor = trained()
    out = tmp_path / "light"
    save_light(model, processor, out, references_of(recipe))
    with pytest.raises(UsageError, match="not empty"):
        save_light(model, processor, out, references_of(recipe))
    with pytest.raises(UsageError, match="merge the LoRA adapter"):
        save_full(model, processor, tmp_path / "full")
    assert not (tmp_path / "full").exists()

    load = AutoModelForImageTextToText.from_pretrained
    adapter = out / "adapter" / "adapter_model.safetensors"
    state = load_file(adapter)
    name = sorted(state)[0]
    save_file({k: v for k, v in state.items() if k != name}, adapter)
    with pytest.raises(WeightsError, match="does not fit this model"):
        load(out)
    save_file(state, adapter)

    weights = out / "model.safetensors"
    own = load_file(weights)
    name = sorted(own)[0]
    save_file({k: v for k, v in own.items() if k != name}, weights)
    with pytest.raises(WeightsError, match=f"{name} is missing"):
        load(out)
    weights.unlink()
    with pytest.raises(WeightsError, match="incomplete"):
        load(out)

    (out / "references.json").write_text("[{}]")
    with pytest.raises(WeightsError, match=r"references\.json cannot be read"):
        load(out)
    (out / "references.json").write_text("[]")
    with pytest.raises(WeightsError, match="lacks language_model"):
        load(out)


def test_a_failed_save_leaves_nothing_behind(tmp_path, monkeypatch):
    recipe, model, processor = trained()

    def full_disk(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vistoken.models.checkpoint.save_file", full_disk)
    with pytest.raises(MachineError, match="disk is full"):
        save_light(model, processor, tmp_path / "light", references_of(recipe))
    assert list(tmp_path.iterdir()) == []


def test_changed_reference_weights_are_noticed(tmp_path, picture):
    values = load_recipe("pico").model_dump(exclude_none=True)
    model, _ = build(parse_recipe(values, "base"))
    tower = tmp_path / "tower"
    model.model.vision_tower.save_pretrained(tower)
    values["towers"][0]["source"] = str(tower)
    recipe = parse_recipe(values, "local")
    model, processor = build(recipe)
    save_light(model, processor, tmp_path / "light", references_of(recipe), torch.float32)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "light")
    assert torch.equal(logits(again, processor, picture), logits(model, processor, picture))

    state = load_file(tower / "model.safetensors")
    state[sorted(state)[0]] += 1
    save_file(state, tower / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"vision_tower\.clip weights .* have changed"):
        AutoModelForImageTextToText.from_pretrained(tmp_path / "light")


def test_a_reference_that_is_not_here_is_named(tmp_path):
    recipe, model, processor = trained()
    save_light(model, processor, tmp_path / "light", references_of(recipe))
    path = tmp_path / "light" / "references.json"
    entries = json.loads(path.read_text())
    entries[-1]["source"] = str(tmp_path / "nowhere")
    path.write_text(json.dumps(entries))
    with pytest.raises(WeightsError, match="nowhere"):
        AutoModelForImageTextToText.from_pretrained(tmp_path / "light")
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="holds no weights"):
        Reference.to("language_model", str(tmp_path / "empty"))


def test_a_light_checkpoint_takes_the_usual_options(tmp_path):
    recipe, model, processor = trained()
    save_light(model, processor, tmp_path / "light", references_of(recipe), torch.float32)
    load = AutoModelForImageTextToText.from_pretrained
    half, report = load(tmp_path / "light", dtype="bfloat16", output_loading_info=True)
    assert half.dtype == torch.bfloat16
    assert report["missing_keys"] == []
    assert load(tmp_path / "light", device_map={"": "cpu"}).device.type == "cpu"
    headless = AutoModel.from_pretrained(tmp_path / "light")
    own = model.model.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in headless.state_dict().items())
    with pytest.raises(UsageError, match="make it full first"):
        load(tmp_path / "light", quantization_config={})
