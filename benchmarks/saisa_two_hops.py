"""What SAISA learns on toy pictures: to read a patch, and to go from one patch to the next.

    python benchmarks/saisa_two_hops.py [--patches 5] [--steps 300] [--batch 128] [--rate 3e-3]
        [--scale 2.24] [--threads 2]

As many patches carry as many labels. One hop: a patch is named, its label is the answer. Two hops:
a label is named, the answer is the label of the next patch; a second model learns the same with the
visual keys hidden from every layer but the first, which says whether later layers use them. Five
patches are the default because nine are not learned in about a minute of one thread: of two hops,
600 steps of 128 with features scaled by 3 gave 0.16 (25 s of processor time), 1,500 steps of 128
scaled by 5 gave 0.40 (63 s), where chance is 0.11. With as many steps as a reference implementation
needed (`--patches 9 --steps 3500 --batch 256 --scale 5`, some seven minutes of one core a model)
nine are learned too: results/saisa_two_hops_9.json.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from paired import machine, write
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

RESULT = Path(__file__).parent / "results" / "saisa_two_hops.json"
PATCHES, STEPS, BATCH, RATE = 5, 300, 128, 3e-3


class HideLater(BaseMechanism):
    """Takes the visual keys away from every layer but the first."""

    name = "hide-later"
    own_cache = False

    def plan(self, layer: int, state: SequenceState) -> LayerPlan:
        """Mask visual keys."""
        if layer == 0:
            return STOCK_LAYER
        rows = state.visual.shape[1]
        return LayerPlan(mask=~state.visual[:, None, None, :].expand(-1, -1, rows, -1))


@dataclass
class Toy:
    """A tiny reader of pictures whose patches carry labels, each once.

    Tokens name the labels first, then the patches. ``scale`` multiplies the one-hot features; by
    default their mean square is about one, as an encoder's.
    """

    layers: int
    patches: int = PATCHES
    hide: bool = False
    width: int = 64
    rate: float = RATE
    scale: float | None = None
    seed: int = 3

    def __post_init__(self) -> None:
        tokens = 2 * self.patches
        config = LlamaConfig(
            hidden_size=self.width,
            intermediate_size=2 * self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            vocab_size=tokens,
            initializer_range=self.width**-0.5,  # 0.02 is meant for widths in the thousands
        )
        self.generator = torch.Generator().manual_seed(self.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.model = LlamaModel(config)
            self.saisa = Saisa(SaisaConfig("independent"), MechanismContext(config, tokens))
            self.head = nn.Linear(self.width, self.patches)
        self.stack = MechanismStack([self.saisa, HideLater()] if self.hide else [self.saisa])
        visual = TOKEN.make(self.patches, kind=TokenKind.VISUAL, view=0)
        self.table = torch.cat([visual, TOKEN.make(1)])

    def logits(self, labels: Tensor, asked: Tensor) -> Tensor:
        """Answers (B, patches) about pictures (B, patches) for questions (B,)."""
        place = torch.eye(self.patches).expand(len(labels), -1, -1)
        features = torch.cat([F.one_hot(labels, self.patches).float(), place], dim=-1)
        # bare one-hots are small beside the projectors' biases: keys would start out nearly alike
        features = features * (self.patches**0.5 if self.scale is None else self.scale)
        table = self.table.repeat(len(labels), 1, 1)
        media = torch.arange(len(labels))[:, None].expand(-1, self.patches)
        table[:, : self.patches] = TOKEN.set(table[:, : self.patches], media=media)
        slots = torch.zeros(len(labels), self.patches, dtype=torch.int64)
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
        labels = torch.rand(count, self.patches, generator=self.generator).argsort(-1)
        places = torch.randint(0, self.patches, (count, 1), generator=self.generator)
        if hops == 1:
            return labels, self.patches + places[:, 0], labels.gather(1, places)[:, 0]
        following = labels.gather(1, (places + 1) % self.patches)[:, 0]
        return labels, labels.gather(1, places)[:, 0], following

    def train(self, hops: int, steps: int, batch: int = BATCH) -> float:
        """Share of right answers to new questions after training."""
        parts: list[nn.Module] = [self.model, self.saisa, self.head]
        weights = [p for part in parts for p in part.parameters()]
        optimiser = torch.optim.AdamW(weights, self.rate, betas=(0.9, 0.98), weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, self.rate, total_steps=steps, pct_start=0.05, cycle_momentum=False
        )
        for _ in range(steps):
            labels, asked, answers = self.draw(hops, batch)
            loss = F.cross_entropy(self.logits(labels, asked), answers)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        return self.score(hops)

    @torch.no_grad()
    def score(self, hops: int, hide: bool = False) -> float:
        """Share of right answers to new questions; with ``hide``, as if it had learned blind."""
        labels, asked, answers = self.draw(hops, 1024)
        before = self.stack
        if hide:
            self.stack = MechanismStack([self.saisa, HideLater()])
        right = (self.logits(labels, asked).argmax(-1) == answers).float().mean()
        self.stack = before
        return float(right)


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train one hop, two hops, and two hops without visual keys behind the first layer."""
    rows: list[dict[str, Any]] = []
    for hops, hide in ((1, False), (2, False), (2, True)):
        toy = Toy(
            layers=3, patches=options.patches, hide=hide, rate=options.rate, scale=options.scale
        )
        right = toy.train(hops, options.steps, options.batch)
        row = {"hops": hops, "learned_without_later_keys": hide, "right": round(right, 3)}
        if hops == 2 and not hide:
            row["right_with_later_keys_taken_away"] = round(toy.score(hops, hide=True), 3)
        rows.append(row)
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    return rows


def main() -> None:
    """Train, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patches", type=int, default=PATCHES)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--scale", type=float, help="of the features; default: root of the patches")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = {
        "what": "share of right answers about toy pictures; chance is one in as many as patches",
        "patches": options.patches,
        "layers": 3,
        "steps": options.steps,
        "batch": options.batch,
        "rows": measure(options),
        "machine": machine(),
    }
    write(options.out, result)


if __name__ == "__main__":
    main()
