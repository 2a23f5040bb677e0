"""Three lines to an answer, from any kind of model name."""

from __future__ import annotations

import pytest
import torch

import vistoken
from vistoken.core.errors import MachineError, UsageError, WeightsError
from vistoken.core.tables import TOKEN, TokenKind
from vistoken.models.build import references_of
from vistoken.models.checkpoint import save_full, save_light
from vistoken.models.device import choose_device, choose_dtype
from vistoken.models.quantize import quantize_language_model
from vistoken.models.recipe import load_recipe


def answer(model, processor, picture):
    inputs = processor(text="<image>what?", images=picture(40, 40), return_tensors="pt")
    return model.generate(**inputs, max_new_tokens=4, do_sample=False)


def test_a_recipe_with_random_weights_loads_and_answers(picture):
    model, processor = vistoken.load("pico", device="cpu")
    again, _ = vistoken.load("pico", device="cpu")
    assert torch.equal(answer(model, processor, picture), answer(again, processor, picture))
    assert not model.training


@pytest.mark.parametrize("kind", ["full", "light"])
def test_a_checkpoint_directory_loads_with_lora_folded_in(pico, picture, tmp_path, kind):
    model, processor = pico
    if kind == "full":
        save_full(model, processor, tmp_path / "m")
    else:
        save_light(
            model, processor, tmp_path / "m", references_of(load_recipe("pico")), torch.float32
        )
    loaded, loaded_processor = vistoken.load(tmp_path / "m", device="cpu")
    expected = answer(model, processor, picture)
    assert torch.equal(answer(loaded, loaded_processor, picture), expected)


def test_images_become_tokens_with_a_map(pico, picture):
    model, processor = pico
    encoded = vistoken.encode_images(model, processor, [picture(30, 60), picture(60, 30)])
    assert len(encoded) == 2
    for tokens, token_map in encoded:
        assert tokens.shape == (len(token_map), model.config.text_config.hidden_size)
        kinds = TOKEN.get(token_map, "kind").tolist()
        assert kinds == sorted(kinds, reverse=True)  # spatial tokens first
        assert kinds.count(TokenKind.SPATIAL) == 2


def test_names_that_are_nothing_are_explained(tmp_path):
    with pytest.raises(UsageError, match="has no trained weights"):
        vistoken.load("llava-sp-cropping-7b")
    with pytest.raises((UsageError, WeightsError), match="nothing-here"):
        vistoken.load(str(tmp_path / "nothing-here"))
    (tmp_path / "empty").mkdir()
    with pytest.raises((UsageError, WeightsError), match="empty"):
        vistoken.load(tmp_path / "empty")


def test_devices_and_types_are_chosen_by_what_is_there():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_dtype("auto", torch.device("cpu")) == torch.float32
    assert choose_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16
    assert choose_dtype(torch.float16, torch.device("cpu")) == torch.float16
    assert choose_dtype("auto", torch.device("mps")) == torch.float16
    with pytest.raises(UsageError, match="did you mean 'cuda'"):
        choose_device("cudda")
    with pytest.raises(UsageError, match="did you mean"):
        choose_dtype("bfloat", torch.device("cpu"))
    for absent in ("cuda", "mps"):
        there = torch.cuda.is_available() if absent == "cuda" else torch.backends.mps.is_available()
        if not there:
            with pytest.raises(MachineError, match=f"no {absent} device"):
                choose_device(absent)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_floating_types_answer(picture, dtype):
    model, processor = vistoken.load("pico", device="cpu", dtype=dtype)
    assert model.dtype == getattr(torch, dtype)
    assert answer(model, processor, picture).shape[0] == 1


@pytest.mark.parametrize(("method", "package"), [("int8", "torchao"), ("nf4", "bitsandbytes")])
def test_quantised_language_models_stay_close(picture, method, package):
    pytest.importorskip(package, reason=f"{package} is in the extra 'quant'")
    exact, processor = vistoken.load("pico", device="cpu")
    model, _ = vistoken.load("pico", device="cpu", quantization=method)
    inputs = processor(text="<image>what?", images=picture(40, 40), return_tensors="pt")
    with torch.no_grad():
        difference = (model(**inputs).logits - exact(**inputs).logits).abs().max()
    assert 0 < difference < 0.5
    projector = model.model.multi_modal_projector.state_dict()
    assert all(
        torch.equal(v, exact.model.multi_modal_projector.state_dict()[k])
        for k, v in projector.items()
    )


def test_an_unknown_quantisation_is_refused(pico):
    with pytest.raises(UsageError, match="did you mean 'int8'"):
        quantize_language_model(pico[0], "int-8")
