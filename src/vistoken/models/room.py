"""Whether a prompt with pictures has room in the language model.

Only prompts with pictures are looked at: how long their tokens get is not seen in what was typed.
Text alone beyond the positions goes where the stock model takes it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache

from vistoken.core.errors import UsageError
from vistoken.models.decoder import (
    SequenceState,
    SparseCache,
    kept_positions,
    prompt_rows,
    row_positions,
    valid_rows,
)
from vistoken.models.decoder.masks import AttentionMask
from vistoken.models.outputs import ImageFeatures


@dataclass(frozen=True)
class Room:
    """Positions of a language model, for the prompts of one call.

    Args:
        positions: How many it has; None where its configuration names none.
        ways_out: What gives fewer tokens, or more room, for the error messages.
        pictures (Tensor): (B, n) bool, the placeholders.
    """

    positions: int | None
    ways_out: list[str]
    pictures: Tensor

    def check_pictures(self, features: ImageFeatures) -> None:
        """Refuse a picture that is too long by itself, however much of it is left out later.

        Args:
            features: Visual tokens of the call's images.

        Raises:
            UsageError: There is such a picture.
        """
        for number, tokens in enumerate(features.pooler_output):
            if self.positions is not None and len(tokens) >= self.positions:
                raise self._refusal(f"image {number} becomes {len(tokens):,} visual tokens")

    def check_call(
        self,
        hidden: Tensor,
        attention_mask: AttentionMask,
        position_ids: Tensor | None,
        cache: Cache | None,
        token_map: Tensor | None,
    ) -> None:
        """As :meth:`check_prompts`, for a language model without mechanisms.

        Args:
            hidden (Tensor): (B, n, D), the call's rows.
            attention_mask: As the language model gets it.
            position_ids (Tensor): (B, n); by default counted on from the cache.
            cache: Cache of earlier calls.
            token_map (Tensor): (B, n, K) int64.
        """
        positions = row_positions(hidden, position_ids, cache)
        valid = valid_rows(hidden, attention_mask, token_map)
        self.check_prompts(SequenceState(hidden, positions, valid, token_map, cache=cache))

    def check_prompts(self, state: SequenceState, keep: Tensor | None = None) -> None:
        """Refuse a prompt whose pictures and text together, and what is cached, are too long.

        Judged is the last position that is taken, so padding, samples that share a row and rows
        that mechanisms leave out do not count. Nor does, without a cache, what was written as an
        answer so far: with one it is never asked about.

        Args:
            state: The call's rows.
            keep (Tensor): (B, n) bool, the rows that mechanisms leave; None where they leave all.

        Raises:
            UsageError: There is such a prompt.
        """
        if self.positions is None:
            return
        taken = state.position_ids if keep is None else kept_positions(state, keep)
        if isinstance(state.cache, SparseCache):
            counted = state.cache.positions_for(state.valid.shape[1])
            taken = taken if counted is None else counted
        rows = state.valid if state.cache is not None else prompt_rows(state)
        rows = rows if keep is None else rows & keep
        last = torch.where(rows.to(taken.device), taken, -1).amax(1).tolist()
        for number, position in enumerate(last):
            if position >= self.positions:
                raise self._refusal(self._sum(state, number, int(position) + 1))

    def _sum(self, state: SequenceState, number: int, needed: int) -> str:
        """The tokens of one prompt of the batch in words."""
        visual = int(self.pictures[number].sum())
        text = int(state.valid[number].sum()) - visual
        cached = 0 if state.cache is None else state.cache.get_seq_length()
        behind = f" behind {cached:,} cached tokens" if cached else ""
        return (
            f"prompt {number} has {visual:,} visual tokens and {text:,} of text{behind}, which "
            f"take {needed:,} positions,"
        )

    def _refusal(self, said: str) -> UsageError:
        return UsageError(
            f"{said} and the language model has {self.positions:,} positions; for fewer tokens or "
            f"more room, {', or '.join(self.ways_out)}"
        )
