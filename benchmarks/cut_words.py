"""Whether a second tiling reads the words that the first one cuts, and what compression leaves.

    python benchmarks/cut_words.py [--seeds 3] [--threads 1] [--out FILE]

A picture shows one word of six glyphs. A tiny ViT learns to name words that are whole, and is then
frozen; a small decoder learns to name the word from the tokens of every tile: those of `msac`
without a second tiling (three detailed tiles and the undivided picture), or with its two adaptive
tiles. Half of the words lie across a cut line of the detailed tiles, the others inside one of them.
`scm` halves the detailed tokens of the trained decoder without training; as many taken at random
stand beside it. There is one ViT; every seed draws pictures and the decoder's weights anew. About
four minutes of one idle core.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from cut_words_pictures import GRID, HALVES, PATCH, PICTURE, TILE, TOWER, Pictures, picture
from paired import machine, write
from tiny import interval, learn, seed_parser, tiny_vit
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from vistoken.core.tables import TOKEN, VIEW, TokenKind
from vistoken.models.decoder import (
    BaseMechanism,
    Mechanism,
    MechanismContext,
    MechanismStack,
    PromptScorer,
    SequenceState,
    run_decoder,
)
from vistoken.systems.mini_monkey.config import Adaptive, MsacConfig, ScmConfig
from vistoken.systems.mini_monkey.scm import Scm
from vistoken.systems.mini_monkey.shuffle import pixel_shuffle
from vistoken.systems.mini_monkey.views import Msac

RESULT = Path(__file__).parent / "results" / "cut_words.json"
RATIO = 0.5
WIDTH, HIDDEN = 64, 64
TOKENS = GRID[0] * GRID[1] // 4
BARS = {
    "cut words": "detailed and adaptive at least 10 points above detailed alone",
    "whole words": "within 2 points",
    "scm": "keeps at least 95 % of the gain, random fewer",
}


@dataclass(frozen=True)
class Sizes:
    """How much is learned and asked."""

    tower_steps: int = 1500
    train: int = 2000
    test: int = 1000
    reader_steps: int = 300
    batch: int = 48
    reader_batch: int = 32


class DropAtRandom(BaseMechanism):
    """Leaves out as many detailed tokens as `scm`, whichever they are."""

    name = "drop-at-random"
    shortens = True

    def __init__(self, scm: Scm, generator: torch.Generator) -> None:
        self.scm, self.generator = scm, generator

    def shorten(self, state: SequenceState, scorer: PromptScorer) -> Tensor | None:
        """Draw the detailed tokens that stay."""
        assert state.token_map is not None
        keep = state.valid.clone()
        for sequence, rows in enumerate(self.scm.detailed(state.token_map)):
            places = torch.nonzero(rows).flatten()
            order = torch.randperm(len(places), generator=self.generator)
            keep[sequence, places[order[int(len(places) * self.scm.config.ratio) :]]] = False
        return keep


def tiling(adaptive: Adaptive) -> Msac:
    """The view function: three detailed tiles, two adaptive ones or none, the whole picture."""
    config = MsacConfig(
        min_detailed=3, max_detailed=3, min_adaptive=2, max_adaptive=2, adaptive=adaptive
    )
    return Msac(config, [TOWER])


class Tower(nn.Module):
    """A tiny ViT with the head that it learns by."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = tiny_vit(TILE, PATCH, WIDTH)
        self.head = nn.Linear(WIDTH, 2 * HALVES)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (B, 2, halves) of a word's first and second half."""
        hidden: Tensor = self.vit(pixels).last_hidden_state
        logits: Tensor = self.head(hidden[:, 1:].mean(1))
        return logits.unflatten(1, (2, HALVES))

    @torch.no_grad()
    def tokens(self, pixels: Tensor) -> Tensor:
        """Tokens (B, N, 4 * width) as InternVL2 makes them: four patches side by side."""
        hidden = self.vit(pixels).last_hidden_state[:, 1:]
        return pixel_shuffle(hidden.unflatten(1, GRID), 2).flatten(1, 2)


class Reader(nn.Module):
    """A small decoder that names the word behind a picture's tokens."""

    def __init__(self, views: Msac) -> None:
        super().__init__()
        config = LlamaConfig(
            hidden_size=HIDDEN,
            intermediate_size=2 * HIDDEN,
            # scm asks what layer 1 attends to; in a last layer all rows but one are idle
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            vocab_size=1,
            bos_token_id=None,
            eos_token_id=None,
            initializer_range=HIDDEN**-0.5,
        )
        self.norm, self.project = nn.LayerNorm(4 * WIDTH), nn.Linear(4 * WIDTH, HIDDEN)
        self.model = LlamaModel(config)
        self.head = nn.Linear(HIDDEN, 2 * HALVES)
        groups = VIEW.get(views.view_table(*PICTURE), "group").repeat_interleave(TOKENS)
        picture = TOKEN.make(len(groups), kind=TokenKind.VISUAL, media=0, view=0, group=groups)
        self.table = torch.cat([picture, TOKEN.make(1)])

    def forward(self, tokens: Tensor, mechanisms: list[Mechanism]) -> Tensor:
        """Logits (B, 2, halves) for tokens (B, N, 4 * width)."""
        question = self.model.embed_tokens(torch.zeros(len(tokens), 1, dtype=torch.int64))
        table = self.table.repeat(len(tokens), 1, 1)
        table[:, :-1] = TOKEN.set(table[:, :-1], media=torch.arange(len(tokens))[:, None])
        hidden = run_decoder(
            self.model,
            stack=MechanismStack(mechanisms),
            inputs_embeds=torch.cat([self.project(self.norm(tokens)), question], dim=1),
            token_map=table,
            use_cache=False,
        ).last_hidden_state
        logits: Tensor = self.head(hidden[:, -1])
        return logits.unflatten(1, (2, HALVES))


def make_tower(pictures: Pictures, sizes: Sizes) -> tuple[Tower, float]:
    """A frozen tower, and its share of right names of new whole words."""
    tower = Tower()

    def loss() -> Tensor:
        pixels, halves = pictures.whole_words(sizes.batch)
        return F.cross_entropy(tower(pixels).flatten(0, 1), halves.flatten())

    learn(tower, sizes.tower_steps, 3e-3, loss)
    pixels, halves = pictures.whole_words(512)
    with torch.no_grad():
        right = (tower(pixels).argmax(-1) == halves).all(1).float().mean()
    return tower.requires_grad_(False), float(right)


def encode(tower: Tower, views: Msac, canvases: list[Any]) -> Tensor:
    """Tokens (pictures, views, N, width) of every picture's views, in half precision."""
    rows = [tower.tokens(torch.stack(views.pixels(picture(c)))).half() for c in canvases]
    return torch.stack(rows)


def make_reader(views: Msac, tokens: Tensor, halves: Tensor, sizes: Sizes) -> Reader:
    """A decoder that has learned from these pictures."""
    reader = Reader(views)
    chooser = torch.Generator().manual_seed(0)

    def loss() -> Tensor:
        chosen = torch.randint(0, len(halves), (sizes.reader_batch,), generator=chooser)
        logits = reader(tokens[chosen].flatten(1, 2).float(), [])
        return F.cross_entropy(logits.flatten(0, 1), halves[chosen].flatten())

    learn(reader, sizes.reader_steps, 3e-3, loss)
    return reader


@torch.no_grad()
def score(
    reader: Reader, tokens: Tensor, halves: Tensor, cut: Tensor, mechanisms: list[Mechanism]
) -> dict[str, float]:
    """Share of right names of cut and of whole words."""
    parts = [reader(part.flatten(1, 2).float(), mechanisms) for part in tokens.split(100)]
    right = (torch.cat(parts).argmax(-1) == halves).all(1).float()
    return {"cut": float(right[cut].mean()), "whole": float(right[~cut].mean())}


def run_seed(seed: int, tower: Tower, sizes: Sizes) -> dict[str, Any]:
    """All arms with pictures and decoder weights of one seed."""
    torch.manual_seed(seed)
    pictures = Pictures(random.Random(seed + 1), np.random.default_rng(seed + 1))
    both, detailed = tiling("any"), tiling("none")
    groups = VIEW.get(both.view_table(*PICTURE), "group")
    train = pictures.scenes(sizes.train)
    test = pictures.scenes(sizes.test)
    seen, asked = encode(tower, both, train.canvases), encode(tower, both, test.canvases)
    one = groups != 2  # without the adaptive tiles: what `adaptive: none` makes
    alone = make_reader(detailed, seen[:, one], train.halves, sizes)
    reader = make_reader(both, seen, train.halves, sizes)
    scm = Scm(ScmConfig(ratio=RATIO), MechanismContext(reader.model.config, WIDTH))
    dropper = DropAtRandom(scm, torch.Generator().manual_seed(seed))
    arms: dict[str, list[Mechanism]] = {
        "detailed and adaptive": [],
        "with scm": [scm],
        "with random dropping": [dropper],
    }
    scores = {"detailed": score(alone, asked[:, one], test.halves, test.cut, [])}
    for name, mechanisms in arms.items():
        scores[name] = score(reader, asked, test.halves, test.cut, mechanisms)
    return {"seed": seed, "whole_in_adaptive": test.whole_in_adaptive} | scores


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds with 95 % intervals of the mean, in points."""
    found: dict[str, list[float]] = {}
    for row in rows:
        base, both = row["detailed"], row["detailed and adaptive"]
        gain = both["cut"] - base["cut"]
        found.setdefault("gain on cut words", []).append(100 * gain)
        found.setdefault("gain on whole words", []).append(100 * (both["whole"] - base["whole"]))
        for name in ("scm", "random dropping"):
            kept = 100 * (row[f"with {name}"]["cut"] - base["cut"]) / gain
            found.setdefault(f"gain kept with {name}, percent", []).append(kept)
        for arm in ("detailed", "detailed and adaptive", "with scm", "with random dropping"):
            for kind in ("cut", "whole"):
                found.setdefault(f"{arm}: {kind}", []).append(100 * row[arm][kind])
    return {name: interval(values) for name, values in found.items()}


def main() -> None:
    """Run the seeds, print and write the result after each."""
    options = seed_parser(__doc__, RESULT).parse_args()
    torch.set_num_threads(options.threads)
    started = time.process_time()
    torch.manual_seed(0)
    tower, right = make_tower(Pictures(random.Random(0), np.random.default_rng(0)), Sizes())
    made = {"named whole": round(right, 3), "core_seconds": round(time.process_time() - started, 1)}
    print(made, flush=True)
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        started = time.process_time()
        rows.append(run_seed(seed, tower, Sizes()))
        rows[-1]["core_seconds"] = round(time.process_time() - started, 1)
        print(rows[-1], flush=True)
        summary = summarise(rows)
        what = "share of six-glyph words named, detailed tiles with and without adaptive ones"
        write(
            options.out,
            {
                "what": what,
                "bars": BARS,
                "tower": made,
                "points": summary,
                "seeds": rows,
                "machine": machine(),
            },
        )
    for name, row in summary.items():
        print(f"{name:40} {row['mean']:6.1f} [{row['low']:.1f}, {row['high']:.1f}]")


if __name__ == "__main__":
    main()
