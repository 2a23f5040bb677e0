"""Made-up prompts for the decoder: text and images in any order, padded on either side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vistoken.core.parts import FEATURES
from vistoken.core.tables import TOKEN, TokenKind

VOCABULARY = 40


@dataclass
class Prompts:
    """A batch for the decoder.

    Prompts are lists of numbers: ``5`` is five tokens of text, ``-9`` an image of nine features.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor
    table: Tensor
    features: list[Tensor]

    @property
    def visual(self) -> Tensor:
        """Rows (B, n) that hold an encoder feature."""
        return TOKEN.get(self.table, "kind") == TokenKind.VISUAL

    @property
    def text(self) -> Tensor:
        """Rows (B, n) that hold text."""
        return (self.mask == 1) & ~self.visual

    def side(self) -> dict[str, Any]:
        """Side inputs."""
        return {FEATURES: self.features}

    def call(self, embedding: torch.nn.Module) -> dict[str, Any]:
        """Arguments of ``run_decoder``; visual slots hold numbers that must not matter."""
        embeds = embedding(self.ids)
        noise = torch.randn(embeds.shape, generator=torch.Generator().manual_seed(99)) * 5
        embeds = torch.where(self.visual.unsqueeze(-1), noise.to(embeds), embeds)
        return {
            "inputs_embeds": embeds,
            "attention_mask": self.mask,
            "position_ids": self.positions,
            "token_map": self.table if self.features else None,
            "side": self.side() if self.features else None,
        }


def make_prompts(
    prompts: Sequence[Sequence[int]], width: int, padding: str = "left", seed: int = 0
) -> Prompts:
    """Random ids and features; a prompt gets the same ones in every batch it stands in."""
    lengths = [sum(map(abs, prompt)) for prompt in prompts]
    longest = max(lengths)
    ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    table = TOKEN.make(ids.numel(), kind=TokenKind.PAD).unflatten(0, tuple(ids.shape))
    features: list[Tensor] = []
    for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        place = longest - length if padding == "left" else 0
        generator = torch.Generator().manual_seed(seed + 1000 + hash(tuple(prompt)) % 1000)
        for part in prompt:
            span = slice(place, place + abs(part))
            mask[row, span] = 1
            drawn = torch.randint(3, VOCABULARY, (abs(part),), generator=generator)
            ids[row, span] = drawn
            kind = TokenKind.TEXT if part > 0 else TokenKind.VISUAL
            medium = {} if part > 0 else {"media": len(features), "view": 0}
            table[row, span] = TOKEN.make(abs(part), kind=kind, **medium)
            if part < 0:
                features.append(torch.randn(-part, width, generator=generator))
            place += abs(part)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return Prompts(ids, mask, positions, table, features)
