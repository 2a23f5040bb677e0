"""A shortened prompt runs as if it had been given so: every family, batch, cache and step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from vistoken.models.decoder import (
    BaseMechanism,
    MechanismStack,
    PromptScorer,
    SequenceState,
    SparseCache,
    run_decoder,
)

Build = Callable[..., PreTrainedModel]
KEEP = torch.tensor([0, 2, 3, 6, 7, 9, 10])


class Shorten(BaseMechanism):
    """Keeps some rows of every prompt; what the scorer says is looked at, not followed."""

    name, shortens = "shorten", True

    def __init__(self, layer: int = 0) -> None:
        self.layer = layer
        self.scores: list[Tensor] = []

    def shorten(self, state: SequenceState, scorer: PromptScorer) -> Tensor | None:
        if state.valid.shape[1] == 1:
            return None
        last = torch.zeros_like(state.valid)
        last[:, -1] = True
        after = torch.full_like(state.valid, -1, dtype=torch.int64)
        self.scores.append(scorer.key_scores(self.layer, last, state.valid, after))
        keep = torch.zeros_like(state.valid)
        keep[:, KEEP] = True
        return keep


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_equals_the_short_prompt(family: str, build: Build, ids: Tensor) -> None:
    model = build(family)
    cache = SparseCache(3)
    stack = MechanismStack([Shorten(1)])
    output = run_decoder(
        model.model, stack=stack, input_ids=ids, past_key_values=cache, use_cache=True
    )
    stock: Any = model.model(input_ids=ids[:, KEEP], use_cache=True)
    close(output.last_hidden_state, stock.last_hidden_state)
    assert output.rows.tolist() == [KEEP.tolist()] * len(ids)
    assert [layer.stored for layer in cache.sparse_layers] == [len(KEEP)] * 3
    kept = cache.position_ids.gather(1, cache.sparse_layers[0].index)
    assert kept.tolist() == [list(range(len(KEEP)))] * len(ids)
    for step in range(3):  # positions given for the whole prompt do not count
        new = ids[:, step : step + 1]
        output = run_decoder(
            model.model,
            stack=stack,
            input_ids=new,
            past_key_values=cache,
            position_ids=torch.full_like(new, ids.shape[1] + step),
            use_cache=True,
        )
        stock = model.model(input_ids=new, past_key_values=stock.past_key_values, use_cache=True)
        close(output.last_hidden_state, stock.last_hidden_state)


@pytest.mark.parametrize("layer", [0, 1, 2])
@torch.no_grad()
def test_scores_are_a_layers_probabilities(
    layer: int, family: str, build: Build, ids: Tensor, padding: Tensor
) -> None:
    """Of the last row, in a padded batch, without leaving a record."""
    mechanism = Shorten(layer)
    output = run_decoder(
        build(family).model,
        stack=MechanismStack([mechanism]),
        input_ids=ids,
        attention_mask=padding,
        use_cache=False,
        output_hidden_states=True,
    )
    assert len(output.hidden_states) == 4
    eager = build(family, "eager").model(
        input_ids=ids, attention_mask=padding, output_attentions=True
    )
    wanted = eager.attentions[layer].mean(1)[:, -1]
    real = padding[:, -1].bool()  # a padded last row sees anything
    torch.testing.assert_close(
        mechanism.scores[0][real], wanted[real] * padding[real], rtol=0, atol=1e-6
    )


@torch.no_grad()
def test_beams_reorder_a_shortened_prompt(build: Build, ids: Tensor) -> None:
    model = build("llama-gqa")
    stack, cache = MechanismStack([Shorten()]), SparseCache(3)
    run_decoder(model.model, stack=stack, input_ids=ids, past_key_values=cache, use_cache=True)
    order = torch.tensor([2, 0, 0])
    cache.reorder_cache(order)
    output = run_decoder(
        model.model, stack=stack, input_ids=ids[:, :1], past_key_values=cache, use_cache=True
    )
    kept = torch.cat([ids[order][:, KEEP], ids[:, :1]], 1)
    close(output.last_hidden_state[:, -1], model.model(input_ids=kept).last_hidden_state[:, -1])
