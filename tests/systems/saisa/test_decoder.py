"""SAISA in the decoder: equal to overwriting visual rows in a dense model, in any batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from vistoken.core.errors import UsageError
from vistoken.core.parts import FEATURES
from vistoken.core.tables import TOKEN, TokenKind
from vistoken.models.decoder import (
    STOCK_LAYER,
    BaseMechanism,
    LayerPlan,
    MechanismStack,
    SequenceState,
    drop_rows,
)

from .conftest import WIDTH
from .prompts import Prompts, make_prompts
from .reference import saisa_hidden

CLOSE = {"rtol": 0, "atol": 1e-5}
BATCHES = {
    "one": [[3, -9, 5]],
    "first": [[-9, 4]],
    "alone": [[-9]],
    "two": [[2, -4, 1, -9, 3], [-4, -4, 2]],
    "mixed": [[7], [3, -9, 5], [1, -4, 2, -4, 2], [-9, 2]],
    "text": [[4], [6]],
}


def text_rows(hidden: Tensor, prompts: Prompts) -> Tensor:
    return hidden[prompts.text]


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("batch", BATCHES)
def test_equals_overwriting_visual_rows(tiny: Any, batch: str, padding: str) -> None:
    prompts = make_prompts(BATCHES[batch], WIDTH, padding)
    with torch.no_grad():
        found = tiny(prompts).last_hidden_state
        expected = saisa_hidden(tiny.model, tiny.saisa, prompts)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(text_rows(found, prompts), text_rows(expected, prompts), **CLOSE)


@pytest.mark.parametrize("padding", ["left", "right"])
def test_batch_equals_singles(gqa: Any, padding: str) -> None:
    kinds = [[7], [3, -9, 5], [1, -4, 2, -4, 2], [-9, 2], [5], [2, -9, 1, -9, 6], [-4, 1], [8, -4]]
    together = make_prompts(kinds, WIDTH, padding)
    with torch.no_grad():
        batch = gqa(together).last_hidden_state
        for row, kind in enumerate(kinds):
            alone = make_prompts([kind], WIDTH)
            single = gqa(alone).last_hidden_state[0]
            inside = batch[row][together.mask[row] == 1]
            text = alone.text[0]
            torch.testing.assert_close(inside[text], single[text], **CLOSE)


def test_text_alone_is_the_stock_model(tiny: Any) -> None:
    prompts = make_prompts([[6], [9]], WIDTH)
    with torch.no_grad():
        found = tiny(prompts).last_hidden_state
        embeds = tiny.model.embed_tokens(prompts.ids)
        expected = tiny.model(
            inputs_embeds=embeds, attention_mask=prompts.mask, position_ids=prompts.positions
        ).last_hidden_state
    assert torch.equal(found, expected)


def test_cached_decoding_equals_one_pass(tiny: Any) -> None:
    whole = make_prompts([[3, -9, 6], [-4, 7]], WIDTH)
    prefill = whole.ids.shape[1] - 4
    with torch.no_grad():
        expected = tiny(whole).last_hidden_state
        cache = DynamicCache(config=tiny.model.config)
        inputs = whole.call(tiny.model.embed_tokens)
        first = {
            **{k: v[:, :prefill] for k, v in inputs.items() if isinstance(v, Tensor)},
            "side": inputs["side"],
        }
        tiny(whole, **first, past_key_values=cache, use_cache=True)
        assert cache.get_seq_length() == prefill
        for place in range(prefill, whole.ids.shape[1]):
            step = tiny(
                whole,
                inputs_embeds=inputs["inputs_embeds"][:, place : place + 1],
                attention_mask=whole.mask[:, : place + 1],
                position_ids=whole.positions[:, place : place + 1],
                token_map=None,
                side=None,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            torch.testing.assert_close(step[:, 0], expected[:, place], **CLOSE)


def test_a_second_image_may_come_to_a_filled_cache(gqa: Any) -> None:
    """A conversation that goes on: the second call has fewer rows than there are keys."""
    whole = make_prompts([[3, -4, 2, -9, 6]], WIDTH)
    inputs = whole.call(gqa.model.embed_tokens)
    with torch.no_grad():
        expected = gqa(whole).last_hidden_state
        cache = DynamicCache(config=gqa.model.config)
        for start, stop, image in ((0, 9, 0), (9, 24, 1)):
            table = TOKEN.set(whole.table, media=TOKEN.get(whole.table, "media").clamp(max=0))
            part = gqa(
                whole,
                inputs_embeds=inputs["inputs_embeds"][:, start:stop],
                attention_mask=whole.mask[:, :stop],
                position_ids=whole.positions[:, start:stop],
                token_map=table[:, start:stop],
                side={FEATURES: [whole.features[image]]},
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            text = whole.text[:, start:stop]
            torch.testing.assert_close(part[text], expected[:, start:stop][text], **CLOSE)


def cached(tiny: Any, prompts: Prompts) -> list[tuple[Tensor, Tensor]]:
    cache = DynamicCache(config=tiny.model.config)
    with torch.no_grad():
        tiny(prompts, past_key_values=cache, use_cache=True)
    return [(layer.keys, layer.values) for layer in cache.layers]


def test_a_visual_token_reaches_its_own_slot_and_the_text_behind(gqa: Any) -> None:
    prompts = make_prompts([[3, -9, 5]], WIDTH)
    changed = make_prompts([[3, -9, 5]], WIDTH)
    changed.features[0][4] += 1.0
    slot = 3 + 4
    for number, (before, after) in enumerate(
        zip(cached(gqa, prompts), cached(gqa, changed), strict=True)
    ):
        for old, new in zip(before, after, strict=True):
            differs = (old - new).abs().amax(dim=(0, 1, 3)) > 1e-6
            expected = torch.zeros(17, dtype=torch.bool)
            expected[slot] = True
            expected[12:] = number > 0  # the text behind, from the second layer on
            assert differs.tolist() == expected.tolist()


def test_permuted_tokens_with_their_positions_change_nothing(gqa: Any) -> None:
    prompts = make_prompts([[3, -9, 5]], WIDTH)
    permuted = make_prompts([[3, -9, 5]], WIDTH)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    permuted.features[0] = permuted.features[0][order]
    with torch.no_grad():
        expected = text_rows(gqa(prompts).last_hidden_state, prompts)
        moved = text_rows(gqa(permuted).last_hidden_state, prompts)
        permuted.positions[0, 3:12] = permuted.positions[0, 3:12][order]
        both = text_rows(gqa(permuted).last_hidden_state, prompts)
    torch.testing.assert_close(both, expected, **CLOSE)
    assert (moved - expected).abs().max() > 1e-3


def test_text_before_the_image_knows_nothing_of_it(gqa: Any) -> None:
    prompts = make_prompts([[4, -9, 5]], WIDTH)
    with torch.no_grad():
        found = gqa(prompts).last_hidden_state[:, :4]
        expected = gqa.model(prompts.ids[:, :4]).last_hidden_state
    torch.testing.assert_close(found, expected, **CLOSE)


def test_embeddings_in_visual_slots_do_not_matter_and_stay(gqa: Any) -> None:
    prompts = make_prompts([[3, -9, 5]], WIDTH)
    inputs = prompts.call(gqa.model.embed_tokens)
    given = inputs["inputs_embeds"].detach().clone()
    other = torch.where(prompts.visual.unsqueeze(-1), given * -3, given)
    with torch.no_grad():
        first = gqa(prompts, inputs_embeds=given).last_hidden_state
        second = gqa(prompts, inputs_embeds=other).last_hidden_state
    assert torch.equal(text_rows(first, prompts), text_rows(second, prompts))
    assert torch.equal(given, inputs["inputs_embeds"])  # nothing is written into the caller's


def test_gradients_equal_the_reference(make_tiny: Any) -> None:
    tiny = make_tiny()
    prompts = make_prompts([[3, -9, 5], [6]], WIDTH)
    weights = [*tiny.saisa.parameters(), *tiny.model.parameters()]
    grads = []
    for hidden in (tiny(prompts).last_hidden_state, saisa_hidden(tiny.model, tiny.saisa, prompts)):
        loss = text_rows(hidden, prompts).square().mean()
        grads.append(torch.autograd.grad(loss, weights, allow_unused=True))
    for found, expected in zip(*grads, strict=True):
        if expected is None:
            assert found is None
            continue
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
def test_gradient_checkpointing_changes_nothing(make_tiny: Any) -> None:
    prompts = make_prompts([[3, -9, 5]], WIDTH)
    grads = []
    for checkpointing in (False, True):
        tiny = make_tiny()
        tiny.model.train()
        if checkpointing:
            tiny.model.gradient_checkpointing_enable({"use_reentrant": False})
        text_rows(tiny(prompts, use_cache=False).last_hidden_state, prompts).sum().backward()
        grads.append([p.grad for p in tiny.saisa.parameters()])
    for plain, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, recomputed, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_type_follows_the_language_model(make_tiny: Any, dtype: torch.dtype) -> None:
    tiny = make_tiny()
    prompts = make_prompts([[3, -9, 5]], WIDTH)
    expected = text_rows(tiny(prompts).last_hidden_state, prompts)
    tiny.model.to(dtype), tiny.saisa.to(dtype)
    found = tiny(prompts).last_hidden_state  # features arrive in float32 all the same
    assert found.dtype == dtype
    torch.testing.assert_close(text_rows(found, prompts).float(), expected, rtol=0, atol=0.15)


def test_wrong_numbers_of_features_are_refused(gqa: Any) -> None:
    prompts = make_prompts([[3, -9, 5], [-4, 2]], WIDTH)
    for wrong, message in (
        ([prompts.features[0][:7], prompts.features[1]], "image 0 has 9 visual tokens .* but 7"),
        ([prompts.features[0]], "visual tokens of 2 images, but features of 1"),
        ([*prompts.features, prompts.features[0]], "image 2 has 0 visual tokens"),
    ):
        with pytest.raises(UsageError, match=message):
            gqa(prompts, side={FEATURES: wrong})
    with pytest.raises(UsageError, match="needs the encoder's features"):
        gqa(prompts, side={})


def test_a_truncated_image_is_refused(gqa: Any) -> None:
    prompts = make_prompts([[3, -9, 5]], WIDTH)
    cut = {k: v[:, :8] for k, v in prompts.call(gqa.model.embed_tokens).items() if k != "side"}
    with pytest.raises(UsageError, match="image 0 has 5 visual tokens .* do not truncate"):
        gqa(prompts, **cut)


def test_images_must_stand_in_order(gqa: Any) -> None:
    prompts = make_prompts([[3, -4, 2, -4, 5]], WIDTH)
    table = TOKEN.set(prompts.table, media=1 - TOKEN.get(prompts.table, "media"))
    with pytest.raises(UsageError, match="order of their features"):
        gqa(prompts, token_map=table)


def test_tokens_without_a_feature_are_text(gqa: Any) -> None:
    """Learned rows and connector-made tokens ask questions like any text."""
    prompts = make_prompts([[3, -9, 5]], WIDTH)
    table = prompts.table.clone()
    table[0, 3] = TOKEN.set(table[0, 3], kind=TokenKind.SPATIAL)
    table[0, 11] = TOKEN.set(table[0, 11], kind=TokenKind.NEWLINE, learned=0)
    prompts.table = table
    prompts.features[0] = prompts.features[0][:7]
    inputs = prompts.call(gqa.model.embed_tokens)
    with torch.no_grad():
        found = gqa(prompts).last_hidden_state
        expected = saisa_hidden(gqa.model, gqa.saisa, prompts, inputs["inputs_embeds"])
    torch.testing.assert_close(text_rows(found, prompts), text_rows(expected, prompts), **CLOSE)


def test_more_layers_than_projectors(make_tiny: Any) -> None:
    tiny = make_tiny()
    tiny.saisa.projectors.layers = 2
    with pytest.raises(UsageError, match="projectors for 2 layers and layer 2"):
        tiny(make_prompts([[3, -9, 5]], WIDTH))


class Later(BaseMechanism):
    """From the second layer on, every other visual row is dropped, or its key hidden."""

    own_cache = False

    def __init__(self, how: str) -> None:
        self.name = how

    def before_layer(self, layer: int, state: SequenceState) -> SequenceState:
        """Drop rows."""
        if self.name == "hide" or layer != 1:
            return state
        return drop_rows(state, state.valid & ~self._chosen(state))[0]

    def plan(self, layer: int, state: SequenceState) -> LayerPlan:
        """Hide keys."""
        if self.name == "drop" or layer < 1:
            return STOCK_LAYER
        return LayerPlan(mask=~self._chosen(state)[:, None, None, :])

    @staticmethod
    def _chosen(state: SequenceState) -> Tensor:
        return state.visual & (state.position_ids % 2 == 0)


def test_another_mechanism_may_drop_visual_rows(gqa: Any) -> None:
    """Features stay with their rows."""
    prompts = make_prompts([[3, -9, 5], [1, -4, 2, -4, 2], [7]], WIDTH)
    outputs = []
    with torch.no_grad():
        for how in ("hide", "drop"):
            stack = MechanismStack([Later(how), gqa.saisa])
            hidden = gqa(prompts, stack=stack, use_cache=False).last_hidden_state
            outputs.append([hidden[0, -5:], hidden[1, -2:], hidden[2, -7:]])
        plain = gqa(prompts).last_hidden_state
    for hidden, dropped in zip(*outputs, strict=True):
        torch.testing.assert_close(dropped, hidden, **CLOSE)
    assert (outputs[0][0] - plain[0, -5:]).abs().max() > 1e-3
