"""What the mechanism can learn: to read a patch, and to go from one patch to the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from vistoken.core.parts import FEATURES
from vistoken.core.tables import TOKEN, TokenKind
from vistoken.models.decoder import (
    STOCK_LAYER,
    BaseMechanism,
    LayerPlan,
    MechanismContext,
    MechanismStack,
    SequenceState,
    run_decoder,
)
from vistoken.systems.saisa.config import SaisaConfig
from vistoken.systems.saisa.mechanism import Saisa

PATCHES, BATCH = 9, 128
ASKED = PATCHES  # tokens 0..8 name labels, 9..17 name patches


class HideLater(BaseMechanism):
    """Takes the visual keys away from every layer but the first."""

    name = "hide-later"
    own_cache = False

    def plan(self, layer: int, state: SequenceState) -> LayerPlan:
        """Mask visual keys."""
        if layer == 0:
            return STOCK_LAYER
        return LayerPlan(mask=~state.visual[:, None, None, :].expand(-1, -1, PATCHES + 1, -1))


@dataclass
class Toy:
    """A tiny reader of pictures whose patches carry labels, each once."""

    layers: int
    hide: bool = False
    width: int = 64

    def __post_init__(self) -> None:
        config = LlamaConfig(
            hidden_size=self.width,
            intermediate_size=2 * self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            vocab_size=2 * PATCHES,
        )
        self.generator = torch.Generator().manual_seed(3)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.model = LlamaModel(config)
            self.saisa = Saisa(SaisaConfig("independent"), MechanismContext(config, 2 * PATCHES))
            self.head = nn.Linear(self.width, PATCHES)
        self.stack = MechanismStack([self.saisa, HideLater()] if self.hide else [self.saisa])
        visual = TOKEN.make(PATCHES, kind=TokenKind.VISUAL, view=0)
        self.table = torch.cat([visual, TOKEN.make(1)])

    def logits(self, labels: Tensor, asked: Tensor) -> Tensor:
        """Answers (B, 9) about pictures of labels (B, 9) for questions (B,)."""
        place = torch.eye(PATCHES).expand(len(labels), -1, -1)
        features = torch.cat([F.one_hot(labels, PATCHES).float(), place], dim=-1)
        table = self.table.repeat(len(labels), 1, 1)
        media = torch.arange(len(labels))[:, None].expand(-1, PATCHES)
        table[:, :PATCHES] = TOKEN.set(table[:, :PATCHES], media=media)
        slots = torch.zeros(len(labels), PATCHES, dtype=torch.int64)
        hidden = run_decoder(
            self.model,
            stack=self.stack,
            input_ids=torch.cat([slots, asked[:, None]], dim=1),
            token_map=table,
            side={FEATURES: list(features)},
            use_cache=False,
        ).last_hidden_state
        return self.head(hidden[:, -1])

    def draw(self, hops: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures, questions and answers."""
        labels = torch.rand(count, PATCHES, generator=self.generator).argsort(-1)
        places = torch.randint(0, PATCHES, (count, 1), generator=self.generator)
        if hops == 1:
            return labels, ASKED + places[:, 0], labels.gather(1, places)[:, 0]
        following = labels.gather(1, (places + 1) % PATCHES)[:, 0]
        return labels, labels.gather(1, places)[:, 0], following

    def train(self, hops: int, steps: int) -> float:
        """Share of right answers to new questions after training."""
        parts: list[nn.Module] = [self.model, self.saisa, self.head]
        weights = [p for part in parts for p in part.parameters()]
        optimiser = torch.optim.AdamW(weights, lr=3e-3, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
        for _ in range(steps):
            labels, asked, answers = self.draw(hops, BATCH)
            loss = F.cross_entropy(self.logits(labels, asked), answers)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        labels, asked, answers = self.draw(hops, 1024)
        with torch.no_grad():
            return float((self.logits(labels, asked).argmax(-1) == answers).float().mean())


@pytest.fixture(scope="module")
def two_hops() -> Callable[[bool], float]:
    """Accuracy on two hops, with or without visual keys behind the first layer."""
    return lambda hide: Toy(layers=3, hide=hide).train(hops=2, steps=900)


@pytest.mark.slow
def test_reads_the_patch_asked_for() -> None:
    assert Toy(layers=2).train(hops=1, steps=300) > 0.95


@pytest.mark.slow
def test_two_hops_need_the_later_layers(two_hops: Callable[[bool], float]) -> None:
    assert two_hops(False) > 0.95
    assert two_hops(True) < 0.6
