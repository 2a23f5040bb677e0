"""The decoder mechanism ``scm``: the detailed tokens that the rest attends to least are left out.

B batch, n rows of a prompt, N detailed tokens of one picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vistoken.core.errors import UsageError
from vistoken.core.parts import PartFlags
from vistoken.core.tables import TOKEN, TokenKind
from vistoken.models.decoder import (
    BaseMechanism,
    MechanismContext,
    PromptScorer,
    SequenceState,
    prompt_rows,
    refuse_pieces,
)
from vistoken.systems.mini_monkey.config import ScmConfig


@dataclass(frozen=True)
class Span:
    """The detailed tokens of one picture.

    Args:
        sequence: Number of the prompt in the batch.
        places (Tensor): (N,) int64, their rows in order.
        kept: How many of them stay.
    """

    sequence: int
    places: Tensor
    kept: int

    @property
    def end(self) -> int:
        """Row of the last one."""
        return int(self.places[-1])


class Scm(BaseMechanism):
    """Scale compression: half of the finer tiling's tokens are dropped before the prefill.

    The first layers run once on the whole prompt. Each detailed token is scored by the attention
    that it gets from everything behind its picture's detailed tokens; those with the highest
    scores stay, and the shortened prompt starts anew. No parameters, no training.

    Args:
        config: The options.
        context: What the mechanism acts in.

    Raises:
        UsageError: The language model has no such layer.

    Source: arXiv 2408.02034 section 3.2; Yuliang-Liu/Monkey:project/mini_monkey.
    """

    config_class = ScmConfig
    name = "scm"
    flags = PartFlags(
        prompt_dependent=True,
        prefix_reusable="no",
        static_cache=False,
        packing=False,
        vllm=False,
    )
    shortens = True

    def __init__(self, config: ScmConfig, context: MechanismContext) -> None:
        text: Any = context.text_config
        self.config = config
        if config.layer >= text.num_hidden_layers:
            raise UsageError(
                f"scm: layer {config.layer} is beyond the language model's "
                f"{text.num_hidden_layers} layers; choose 0 to {text.num_hidden_layers - 1}"
            )

    def shorten(self, state: SequenceState, scorer: PromptScorer) -> Tensor | None:
        """Choose the detailed tokens that stay; None where there are none to leave out.

        Raises:
            UsageError: Nothing stands behind a picture's detailed tokens, or the prompt comes in
                pieces.
        """
        if self.config.ratio == 1 and self.config.compat == "fixed":
            return None
        refuse_pieces(state, self.name, self.detailed)
        if state.token_map is None:
            return None
        detailed = self.detailed(state.token_map) & state.valid
        spans = self._spans(state.token_map, detailed)
        if not spans:
            return None
        keep = state.valid.clone()
        scores = self._scores(state, detailed, spans, scorer)
        for span in spans:
            order = scores[span.sequence, span.places].argsort(descending=True, stable=True)
            keep[span.sequence, span.places[order[span.kept :]]] = False
            if self.config.compat == "official" and span.end + 1 < keep.shape[1]:
                keep[span.sequence, span.end + 1] = False
        return keep

    def detailed(self, token_map: Tensor) -> Tensor:
        """Rows (...) bool of a TokenMap (..., K) that are detailed tokens."""
        of_group = TOKEN.get(token_map, "group") == self.config.group
        visual = TOKEN.get(token_map, "kind") == TokenKind.VISUAL
        return of_group & visual

    def kept_length(self, token_map: Tensor) -> int:
        """How many rows of a prompt's TokenMap (n, K) are left, before anything runs."""
        spans = self._spans(token_map[None], self.detailed(token_map)[None])
        lost = sum(len(span.places) - span.kept for span in spans)
        if self.config.compat == "official":
            lost += sum(span.end + 1 < len(token_map) for span in spans)
        return len(token_map) - lost

    def _spans(self, token_map: Tensor, detailed: Tensor) -> list[Span]:
        spans: list[Span] = []
        media = TOKEN.get(token_map, "media")
        for sequence, rows in enumerate(detailed):
            for medium in media[sequence, rows].unique():
                places = torch.nonzero(rows & (media[sequence] == medium)).flatten()
                kept = int(len(places) * self.config.ratio)
                spans.append(Span(sequence, places, kept))
        return spans

    def _scores(
        self, state: SequenceState, detailed: Tensor, spans: list[Span], scorer: PromptScorer
    ) -> Tensor:
        """Scores (B, n) of the detailed tokens, on the tables' device."""
        asking = prompt_rows(state)
        if self.config.exclude_other_detailed:
            asking = asking & ~detailed
        count = state.valid.shape[1]
        after = torch.full_like(state.valid, count, dtype=torch.int64)
        cols, rows = torch.zeros_like(state.valid), torch.zeros_like(state.valid)
        for span in spans:
            behind = asking[span.sequence].clone()
            behind[: span.end + 1] = False
            if not 0 < span.kept < len(span.places):
                continue
            if not bool(behind.any()):
                raise UsageError(
                    f"scm: prompt {span.sequence} ends with the detailed tiles of a picture, and "
                    "nothing behind them says which of their tokens matter; put text behind it, "
                    "in the same call"
                )
            after[span.sequence, span.places] = span.end
            cols[span.sequence, span.places] = True
            rows[span.sequence] |= behind
        if not bool(cols.any()):
            return torch.zeros(cols.shape, device=cols.device)
        return scorer.key_scores(self.config.layer, rows, cols, after).to(cols.device)
