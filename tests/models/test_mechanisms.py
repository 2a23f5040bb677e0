"""A decoder mechanism with weights of its own, inside the whole model."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, PretrainedConfig

from vistoken.core.errors import UsageError, WeightsError
from vistoken.core.parts import PartFlags
from vistoken.models import VistokenForConditionalGeneration
from vistoken.models.build import build
from vistoken.models.checkpoint import save_full
from vistoken.models.decoder import (
    STOCK_LAYER,
    BaseMechanism,
    Inject,
    LayerPlan,
    MechanismContext,
    SequenceState,
    SparseCache,
    build_stack,
    drop_rows,
)
from vistoken.models.decoder import build as decoder_build
from vistoken.models.recipe import load_recipe, parse_recipe
from vistoken.train.groups import part_parameters

GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 5, "min_new_tokens": 5}


@dataclass(frozen=True)
class ToyConfig:
    """Options of the toy mechanism."""

    penalty: float = 0.0


class Toy(BaseMechanism, nn.Module):
    """Visual rows are keys and values made of encoder features by one linear map per layer."""

    name = "toy"
    flags = PartFlags()
    own_cache = False
    config_class = ToyConfig
    side_inputs = ("encoder_features",)

    def __init__(self, config: ToyConfig, context: MechanismContext) -> None:
        super().__init__()
        text = context.text_config
        self.config = config
        self.projectors = nn.ModuleList(
            nn.Linear(context.feature_width, text.hidden_size)
            for _ in range(text.num_hidden_layers)
        )

    def plan(self, layer: int, state: SequenceState) -> LayerPlan:
        visual = state.visual
        if not bool(visual.any()):
            return STOCK_LAYER
        features = torch.cat(state.side["encoder_features"])
        inject = Inject(visual, lambda number: self.projectors[number](features))
        return LayerPlan(query_rows=~visual, inject=(inject,))

    def after_layer(self, layer: int, state: SequenceState, aux: dict[str, Tensor]) -> None:
        aux[f"toy/rows-{layer}"] = state.visual.sum()
        if self.config.penalty:
            size = self.projectors[layer].weight.square().mean()
            aux[f"toy/loss/size-{layer}"] = self.config.penalty * size


class Half(BaseMechanism):
    """Drops every other visual token of a prompt before the second layer."""

    name = "half"
    flags = PartFlags(beam=False, packing=False)
    config_class = ToyConfig

    def __init__(self, config: ToyConfig, context: MechanismContext) -> None:
        self.config = config

    def before_layer(self, layer: int, state: SequenceState) -> SequenceState:
        if layer != 1 or not bool(state.visual.any()):
            return state
        return drop_rows(state, ~(state.visual & (state.row_order % 2 == 0)))[0]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the two mechanisms known by name."""
    known = {"toy": Toy, "half": Half}
    monkeypatch.setattr(decoder_build, "load_part", lambda kind, name: known[name])


def make(*mechanisms: Any, connector: Any = ("mlp",), dtype: torch.dtype = torch.float32) -> Any:
    values = copy.deepcopy(load_recipe("pico").model_dump(exclude_none=True))
    values["connector"] = list(connector)
    model, processor = build(parse_recipe(values, "plain"), dtype)
    config = copy.deepcopy(model.config)
    config.decoder_config = {"mechanisms": list(mechanisms)}
    torch.manual_seed(0)
    ours = VistokenForConditionalGeneration(config).to(dtype).eval()
    ours.generation_config = model.generation_config
    ours.load_state_dict(model.state_dict(), strict=False)
    return ours, processor


def inputs_for(processor: Any, picture: Any, *counts: int, side: str = "left") -> Any:
    texts = [
        processor.apply_chat_template(
            [
                {
                    "role": "user",
                    "content": [{"type": "image"}] * count
                    + [{"type": "text", "text": "What?" * (count + 1)}],
                }
            ],
            add_generation_prompt=True,
        )
        for count in counts
    ]
    pictures = [picture(40 + 8 * i, 56 - 4 * i, i) for i in range(sum(counts))]
    options = {"return_tensors": "pt", "padding": True, "padding_side": side}
    return processor(text=texts, images=pictures or None, **options)


@pytest.mark.parametrize("side", ["left", "right"])
def test_mixed_batch_equals_singles(side: str, picture: Any) -> None:
    model, processor = make("toy")
    counts = (0, 1, 2, 1)
    batch = inputs_for(processor, picture, *counts, side=side)
    with torch.no_grad():
        logits = model(**batch).logits
        starts = [sum(counts[:number]) for number in range(len(counts))]
        for number, (count, start) in enumerate(zip(counts, starts, strict=True)):
            keep = batch["attention_mask"][number].bool()
            single: dict[str, Any] = {"input_ids": batch["input_ids"][number][keep][None]}
            if count:
                for name in ("pixel_values", "view_table"):
                    single[name] = batch[name][start : start + count]
            expected = model(**single).logits[0]
            torch.testing.assert_close(logits[number][keep], expected, rtol=1e-4, atol=1e-4)


def test_generation_with_and_without_cache(picture: Any) -> None:
    for name in ("toy", "half"):
        model, processor = make(name)
        batch = inputs_for(processor, picture, 0, 2, 1)
        on, off = (model.generate(**batch, use_cache=use, **GREEDY) for use in (True, False))
        assert torch.equal(on, off)


def test_beams_repeat_the_side_inputs(picture: Any) -> None:
    model, processor = make("toy")
    batch = inputs_for(processor, picture, 1, 2)
    answers = [
        model.generate(**batch, use_cache=use, num_beams=3, **GREEDY) for use in (True, False)
    ]
    assert torch.equal(*answers)


def test_generate_makes_the_mechanisms_own_cache(picture: Any) -> None:
    model, processor = make("half")
    batch = inputs_for(processor, picture, 1)
    output = model.generate(**batch, return_dict_in_generate=True, **GREEDY)
    cache = output.past_key_values
    assert isinstance(cache, SparseCache)
    first, second = cache.sparse_layers
    assert second.stored < first.stored == cache.get_seq_length()


def test_what_flags_exclude_is_refused_before_anything_runs(picture: Any) -> None:
    model, processor = make("half")
    batch = inputs_for(processor, picture, 1)
    with pytest.raises(UsageError, match="'half' cannot run under beam search"):
        model.generate(**batch, num_beams=2, **GREEDY)
    for kind in ("static", "quantized", "offloaded"):
        with pytest.raises(UsageError, match=f"'half' cannot run on a cache of the kind '{kind}'"):
            model.generate(**batch, cache_implementation=kind, **GREEDY)
    ready = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    with pytest.raises(UsageError, match="'half' cannot run on packed samples"):
        model(input_ids=torch.tensor([[1, 5, 6, 7]]), attention_mask=ready)


def test_losses_of_mechanisms_are_in_the_loss(picture: Any) -> None:
    plain, processor = make("toy")
    model, _ = make({"part": "toy", "options": {"penalty": 2.0}})
    model.load_state_dict(plain.state_dict())
    batch = inputs_for(processor, picture, 1)
    labels = batch["input_ids"].clone()
    expected, actual = plain(**batch, labels=labels), model(**batch, labels=labels)
    toy = model.model.mechanisms["toy"]
    size = sum(2.0 * layer.weight.square().mean() for layer in toy.projectors)
    torch.testing.assert_close(actual.loss, expected.loss + size)
    assert expected.aux["toy/rows-0"] == plain.model.plan.arrange(batch["view_table"]).counts[0]
    actual.loss.backward()
    grads = [p.grad for p in model.model.mechanisms.parameters()]
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grads)


def test_labels_follow_the_rows_that_are_left(picture: Any) -> None:
    """A kept row still predicts the token behind it, kept or not."""
    model, processor = make("half")
    batch = inputs_for(processor, picture, 0, 1)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    output = model(**batch, labels=labels, use_cache=False)
    assert output.logits.shape[1] < labels.shape[1]
    total, count = torch.zeros(()), 0
    for logits, rows, own in zip(output.logits, output.rows, labels, strict=True):
        for place, row in enumerate(rows.tolist()):
            if 0 <= row < len(own) - 1 and own[row + 1] != -100:
                total = total + nn.functional.cross_entropy(logits[place], own[row + 1])
                count += 1
    torch.testing.assert_close(output.loss, total / count)


def test_weights_are_saved_loaded_and_grouped(picture: Any, tmp_path: Any) -> None:
    model, processor = make("toy")
    names = [name for name in model.state_dict() if ".mechanisms." in name]
    assert "model.mechanisms.toy.projectors.1.bias" in names
    language = [n for n in model.state_dict() if n.startswith("model.language_model.")]
    assert all("toy" not in name for name in language)
    assert list(part_parameters(model)["mechanisms"]) == names
    save_full(model, processor, tmp_path / "out")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    batch = inputs_for(processor, picture, 1)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, again(**batch).logits)
    from safetensors.torch import load_file, save_file

    path = tmp_path / "out" / "model.safetensors"
    state = load_file(path)
    del state["model.mechanisms.toy.projectors.0.weight"]
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"mechanisms\.toy\.projectors\.0\.weight"):
        VistokenForConditionalGeneration.from_pretrained(tmp_path / "out")


def test_the_language_model_stays_a_plain_one() -> None:
    """Its names are its own: a plain class loads its state strictly."""
    from transformers import AutoModel

    model, _ = make("toy", "half")
    language: Any = model.model.language_model
    plain = AutoModel.from_config(language.config)
    plain.load_state_dict(language.state_dict(), strict=True)


def test_weights_take_the_models_type() -> None:
    model, _ = make("toy", dtype=torch.bfloat16)
    assert {p.dtype for p in model.model.mechanisms.parameters()} == {torch.bfloat16}


def test_one_slot_per_feature(picture: Any) -> None:
    model, processor = make("toy", connector=["mlp", {"part": "pool", "options": {"grid": [2, 2]}}])
    batch = inputs_for(processor, picture, 1)
    with pytest.raises(UsageError, match="4 tokens of 16 features"):
        model(**batch)


def test_costs_are_counted_from_the_plans() -> None:
    from vistoken.models.cost import measure_cost

    for name in ("toy", "half"):
        model, _ = make(name)
        model = model.to("meta")
        cost = measure_cost(model, model.config.pipeline(), text_tokens=6)
        prefill, decode, stored = cost.stock
        # the stock count has a rotary table more
        assert cost.prefill_flops < prefill
        assert (cost.prompt_cache_values < stored) is (name == "half")
        assert cost.decode_flops <= decode
        assert cost.cache_values * (cost.visual_tokens + 6) == stored


def test_other_language_models_are_refused_when_built() -> None:
    config = PretrainedConfig(hidden_size=8, num_hidden_layers=1)
    config.model_type = "gemma2"
    with pytest.raises(UsageError, match="do not support the language model family 'gemma2'"):
        build_stack(["toy"], MechanismContext(config, 8))


@pytest.mark.parametrize("mechanism", ["toy", "half"])
def test_a_text_map_changes_no_answer(mechanism: str, picture: Any) -> None:
    model, processor = make(mechanism)
    shown = {"type": "image", "image": picture(40, 56)}
    message = {"role": "user", "content": [shown, {"type": "text", "text": "What?"}]}
    inputs = processor.apply_chat_template(
        [message],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_text_map=True,
    )
    plain = {key: value for key, value in inputs.items() if key != "text_map"}
    assert torch.equal(model.generate(**inputs, **GREEDY), model.generate(**plain, **GREEDY))
