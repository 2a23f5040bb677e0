"""What a picture's tokens do in each decoder layer: full rows, keys only, or gone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from vistoken.core.tables import TOKEN
from vistoken.models.decoder import (
    LayerPlan,
    MechanismStack,
    SequenceState,
    make_cache,
    run_decoder,
)
from vistoken.models.scatter import batch_token_map, scatter_rows
from vistoken.viz.fates import LayerRows, TokenStory, tell_story
from vistoken.viz.looking import as_weights, prompt_inputs, prompt_text_map

if TYPE_CHECKING:
    from vistoken.models import VistokenForConditionalGeneration, VistokenProcessor

GONE, KEYS, FULL = 0, 1, 2


class RowStack(MechanismStack):
    """A model's mechanisms, and somebody who notes which rows each layer has. For one prompt.

    Args:
        mechanisms: The model's own.
        length: Positions of the prompt.
    """

    def __init__(self, mechanisms: Iterable[Any], length: int) -> None:
        super().__init__(mechanisms)
        self._length = length
        self.states: list[Tensor] = []

    def plan(self, layer: int, state: SequenceState) -> LayerPlan:
        """What the mechanisms say; noted."""
        plan = super().plan(layer, state)
        noted = torch.full((self._length,), GONE)
        asks = state.valid if plan.query_rows is None else state.valid & plan.query_rows
        order = state.row_order[0].cpu()
        real = (order >= 0) & state.valid[0].cpu()
        doing = torch.where(asks.expand_as(state.valid)[0].cpu(), FULL, KEYS)
        noted[order[real]] = doing[real]
        self.states.append(noted)
        return plan


@torch.no_grad()
def follow_tokens(
    model: VistokenForConditionalGeneration,
    processor: VistokenProcessor,
    picture: Image.Image,
    question: str,
) -> TokenStory:
    """Tell a picture's story, its decoder layers included, by running a prompt.

    Args:
        model: The model, in evaluation mode.
        processor: Its processor.
        picture: The picture, RGB.
        question: The question beside it.
    """
    content = [{"type": "image"}, {"type": "text", "text": question}]
    inputs = prompt_inputs(processor, [{"role": "user", "content": content}], [picture])
    inputs = inputs.to(model.device)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    features = model.get_image_features(
        as_weights(model, inputs["pixel_values"]), inputs["view_table"]
    )
    pictures = ids == model.config.image_token_id
    inner = model.model
    table = batch_token_map(pictures, mask, features, prompt_text_map(inputs))
    stack = RowStack(inner.stack, ids.shape[1])
    run_decoder(
        inner.language_model,
        stack=stack,
        inputs_embeds=scatter_rows(pictures, inner.get_input_embeddings()(ids), features),
        attention_mask=mask,
        past_key_values=make_cache(model.config.text_config, stack),
        use_cache=True,
        token_map=table,
        side=features.side,
    )
    own = TOKEN.get(table[0].cpu(), "media") == 0 if table is not None else pictures[0].cpu()
    story = tell_story(processor.image_processor.plan, torch.as_tensor(inputs["view_table"]).cpu())
    rows = tuple(LayerRows(n, states[own]) for n, states in enumerate(stack.states))
    return replace(story, rows=rows)
