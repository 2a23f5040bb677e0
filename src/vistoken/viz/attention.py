"""Attention weights of chosen decoder layers, read beside the layers' own attention function.

The layers run as they always do (sdpa stays sdpa, mechanisms act); a chosen layer is asked for its
probabilities too, which are worked out a few rows at a time. No layer is asked that is not named.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vistoken.core.errors import UsageError
from vistoken.core.tables import TOKEN
from vistoken.models.decoder import (
    LayerPlan,
    MechanismStack,
    ScoreRequest,
    SequenceState,
    run_decoder,
)
from vistoken.models.scatter import batch_token_map, scatter_rows
from vistoken.viz.rollout import Rollout

if TYPE_CHECKING:
    from vistoken.models import VistokenForConditionalGeneration
    from vistoken.models.outputs import ImageFeatures

_NAME = "viz/attention"


@dataclass(frozen=True)
class Choice:
    """Whose attention is wanted.

    Args:
        layers: Numbers of the layers, from 0; all of them when empty.
        head: One query head; the mean of all when None.
        rollout: Follow the attention of all layers down to the prompt instead: half of what a row
            holds after a layer counts as its own, half as what it attended to.
    """

    layers: tuple[int, ...] = ()
    head: int | None = None
    rollout: bool = False

    def check(self, text_config: Any) -> Choice:
        """Name every layer, and refuse what the language model does not have.

        Raises:
            UsageError: No such layer or head, or a rollout of some layers or of one head.
        """
        total, heads = text_config.num_hidden_layers, text_config.num_attention_heads
        partial = self.layers not in ((), tuple(range(total)))
        if self.rollout and (partial or self.head is not None):
            raise UsageError("a rollout goes through all layers and heads; name neither with it")
        for layer in self.layers:
            if not 0 <= layer < total:
                raise UsageError(
                    f"there is no layer {layer}: this language model has 0 to {total - 1}"
                )
        if self.head is not None and not 0 <= self.head < heads:
            raise UsageError(
                f"there is no head {self.head}: this language model has 0 to {heads - 1}"
            )
        return replace(self, layers=tuple(sorted(set(self.layers))) or tuple(range(total)))


@dataclass(frozen=True, eq=False)
class Reading:
    """Attention of the asked rows; B sequences, A asked rows of each, n positions.

    Args:
        layers: Numbers of the layers; all of them for a rollout.
        weights (Tensor): (L, B, A, n) float32 on the CPU, over all keys; L is 1 for a rollout.
            Behind a sequence's last asked row, 0. With ``unused`` each asked row sums to 1.
        unused (Tensor): (L, B, A), weight on keys whose values a mechanism sets to 0.
        token_map (Tensor): (B, n, K) int64, what the positions are.
    """

    layers: tuple[int, ...]
    weights: Tensor
    unused: Tensor
    token_map: Tensor

    @property
    def mean(self) -> Tensor:
        """Weights (B, A, n), mean of the layers."""
        return self.weights.mean(0)


class AttentionStack(MechanismStack):
    """A model's mechanisms, and somebody who reads attention while they act. For one call.

    Args:
        mechanisms: The model's own.
        choice: Layers and head, checked.
        asked (Tensor): (B, n) bool, rows whose attention is wanted.
    """

    def __init__(self, mechanisms: Iterable[Any], choice: Choice, asked: Tensor) -> None:
        super().__init__(mechanisms)
        self._choice, self._asked = choice, asked
        self._places: list[list[int]] = [torch.nonzero(row).flatten().tolist() for row in asked]
        self._rows: Tensor | None = None
        self._plan: LayerPlan | None = None
        self.found: dict[int, tuple[Tensor, Tensor]] = {}
        self.rollout = Rollout(asked.shape) if choice.rollout else None

    def plan(self, layer: int, state: SequenceState) -> LayerPlan:
        """What the mechanisms say, and the request for scores in a chosen layer."""
        plan = super().plan(layer, state)
        if layer not in self._choice.layers:
            return plan
        rows = state.valid.clone()
        if not self._choice.rollout:
            order = state.row_order.to(self._asked.device)
            asked = self._asked.gather(1, order.clamp(min=0)) & (order >= 0)
            rows &= asked.to(rows.device)
        if plan.query_rows is not None:
            rows &= plan.query_rows.to(rows.device)
        if any(bool((cut.rows & rows).any()) for cut in plan.row_heads):
            raise UsageError(
                f"some of these rows compute in layer {layer} in a part of the heads only, so "
                "their attention cannot be followed through it; leave --rollout out"
            )
        single = plan.head_value_keep is not None or plan.head_out_keep is not None
        request = ScoreRequest(
            _NAME,
            rows=rows,
            cols=torch.ones(1, state.valid.shape[1], dtype=torch.bool, device=rows.device),
            heads="mean" if self._choice.rollout and not single else "all",
        )
        self._rows, self._plan = rows, plan
        return replace(plan, need_scores=(*plan.need_scores, request))

    def after_layer(self, layer: int, state: SequenceState, aux: dict[str, Tensor]) -> None:
        """Keep the scores, reduced."""
        super().after_layer(layer, state, aux)
        if layer not in self._choice.layers or self._rows is None or self._plan is None:
            return
        scores = state.scores[_NAME]
        scores = scores if scores.dim() == 4 else scores[:, None]  # (B, H or 1, r, k)
        total = scores.sum(-1)
        keep = self._plan.head_value_keep
        if keep is not None:
            scores = scores * keep[:, :, None].to(scores)
        rows = [torch.nonzero(row).flatten() for row in self._rows]
        if self._plan.head_out_keep is not None:
            scores = scores * _of_rows(self._plan.head_out_keep, rows, scores)
        head = self._choice.head
        chosen = scores.mean(1) if head is None else scores[:, head]
        unused = (total - scores.sum(-1)).clamp(min=0)
        unused = unused.mean(1) if head is None else unused[:, head]
        order = state.row_order
        if self.rollout is not None:
            self.rollout.pass_layer(chosen, rows, order)
        else:
            self.found[layer] = self._placed(chosen, unused, rows, order)

    def _placed(
        self, scores: Tensor, unused: Tensor, rows: list[Tensor], order: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Scores (B, A, n) and unused (B, A) of the asked rows, by their places in the prompt."""
        batch, length = self._asked.shape
        most = max(len(places) for places in self._places)
        full = torch.zeros(batch, most, length)
        left = torch.zeros(batch, most)
        for number, (own, places) in enumerate(zip(rows, self._places, strict=True)):
            real = order[number] >= 0
            keys = order[number][real].cpu()
            where = {place: index for index, place in enumerate(places)}
            for index, row in enumerate(own.tolist()):
                slot = where[int(order[number, row])]
                full[number, slot, keys] = scores[number, index][real].float().cpu()
                left[number, slot] = unused[number, index].float().cpu()
        return full, left


def _of_rows(factors: Tensor, rows: list[Tensor], scores: Tensor) -> Tensor:
    """Factors (B, H or 1, n or 1) of the asked rows, to be multiplied with (B, H, r, k)."""
    batch, _, most, _ = scores.shape
    chosen = scores.new_ones(batch, factors.shape[1], most, 1)
    for number, own in enumerate(rows):
        of_one = factors.expand(batch, -1, -1)[number].to(scores)
        picked = of_one if of_one.shape[1] == 1 else of_one[:, own.to(of_one.device)]
        chosen[number, :, : len(own), 0] = picked
    return chosen


@torch.no_grad()
def read_attention(
    model: VistokenForConditionalGeneration,
    input_ids: Tensor,
    asked: Tensor,
    *,
    choice: Choice | None = None,
    attention_mask: Tensor | None = None,
    features: ImageFeatures | None = None,
    text_map: Tensor | None = None,
) -> Reading:
    """Read the attention of some rows in one pass without a cache.

    Args:
        model: The model, in evaluation mode.
        input_ids (Tensor): (B, n) int64, prompts with what was answered.
        asked (Tensor): (B, n) bool; the row in front of a token is the one that wrote it.
        choice: Layers and heads; the mean of all when None.
        attention_mask (Tensor): (B, n), 0 on padding.
        features: The encoded pictures.
        text_map (Tensor): (B, n, K) int64; mechanisms that choose by the question need it to tell
            question from answer.

    Returns:
        The weights of every chosen layer.

    Raises:
        UsageError: No such layer or head, nothing is asked, or the model's attention function
            takes no mask (flash and flex attention).
    """
    choice = (choice or Choice()).check(model.config.text_config)
    if not bool(asked.any()):
        raise UsageError("no row is asked about; an answer has at least one token")
    inner = model.model
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    embeds = inner.get_input_embeddings()(input_ids)
    token_map = text_map
    if features is not None:
        pictures = input_ids == model.config.image_token_id
        embeds = scatter_rows(pictures, embeds, features)
        token_map = batch_token_map(pictures, mask, features, text_map)
    if token_map is None:
        token_map = TOKEN.make(input_ids.numel()).unflatten(0, input_ids.shape).to(input_ids.device)
    stack = AttentionStack(inner.stack, choice, asked.cpu())
    run_decoder(
        inner.language_model,
        stack=stack,
        inputs_embeds=embeds,
        attention_mask=mask,
        position_ids=(mask.long().cumsum(1) - 1).clamp(min=0),
        token_map=token_map,
        side=features.side if features is not None else None,
        use_cache=False,
    )
    if stack.rollout is not None:
        weights = stack.rollout.of(asked.cpu())[None]
        unused = torch.zeros(weights.shape[:-1])
    else:
        weights = torch.stack([stack.found[layer][0] for layer in choice.layers])
        unused = torch.stack([stack.found[layer][1] for layer in choice.layers])
    return Reading(choice.layers, weights, unused, token_map.cpu())
