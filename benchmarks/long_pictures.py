"""Whether slices at a picture's own shape read more than one squashed square of as many tokens.

    python benchmarks/long_pictures.py [--seeds 3] [--threads 1] [--out FILE]

A picture shows four digits in a row or a column and is one to six times as long as wide. A tiny
ViT learns what is at every patch of small squares and is then frozen. A small transformer learns
to read the digits, in equal steps from equal pictures, from the ViT's features on

- `square`: the picture squashed to the tower's square, its 36 patches;
- `uhd-slices`: the overview and four to six slices, each averaged to 2 x 2 tokens: at most 28;
- `large square`: the picture squashed to a square of about as many patches as the slices have,
  averaged to 36 tokens: more resolution without the shape, from a ViT that learned smaller grids.

Every token says which rectangle of the picture it shows. There is one ViT; every seed draws
pictures and the reader's weights anew. About three minutes of one core.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from long_pictures_drawing import DIGITS, KINDS, PATCH, SIDE, TOWER, Artist, Pictures
from paired import machine, write
from tiny import bootstrap, learn, seed_parser, tiny_vit
from torch import Tensor, nn

from vistoken.core.chain import Grid, grid_token_map
from vistoken.core.parts import ViewFunction
from vistoken.core.registry import load_part, make_config
from vistoken.core.tables import rectangles
from vistoken.systems.llava_uhd.config import UhdSlicesConfig
from vistoken.systems.llava_uhd.views import UhdSlices

RESULT = Path(__file__).parent / "results" / "long_pictures.json"
WIDTH = 48
BANDS = ((1.0, 2.0), (2.0, 3.5), (3.5, 6.5))
BARS = {"digits": "uhd-slices at least 10 points above square, with no more tokens a picture"}


@dataclass(frozen=True)
class Sizes:
    """How much is learned and asked."""

    squares: int = 6000
    tower_steps: int = 1200
    train: int = 1200
    test: int = 400
    reader_steps: int = 300
    batch: int = 32


@dataclass(frozen=True)
class Arm:
    """One way of showing a picture.

    Args:
        views: The view function.
        tokens: Rows and columns of tokens that each view gives.
    """

    views: ViewFunction
    tokens: int


def make_arms() -> dict[str, Arm]:
    """The squashed square, the slices, and a squashed square with the slices' pixels."""
    square = load_part("views", "square")
    options = make_config(square.config_class, {}, "square")
    large = replace(TOWER, size=(56, 56))  # 14 x 14 patches
    return {
        "square": Arm(square(options, [TOWER]), 6),
        "uhd-slices": Arm(UhdSlices(UhdSlicesConfig(max_slices=6), [TOWER]), 2),
        "large square": Arm(square(options, [large]), 6),
    }


class Tower(nn.Module):
    """A tiny ViT with the head that it learns by."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = tiny_vit((SIDE, SIDE), PATCH, WIDTH)
        self.head = nn.Linear(WIDTH, KINDS + 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (B, patches, digits and paper)."""
        logits: Tensor = self.head(self.features(pixels))
        return logits

    def features(self, pixels: Tensor) -> Tensor:
        """Patch features (B, patches, width) of pictures of any size."""
        whole = tuple(pixels.shape[-2:]) == (SIDE, SIDE)
        found = self.vit(pixels, interpolate_pos_encoding=not whole)
        hidden: Tensor = found.last_hidden_state[:, 1:]
        return hidden


@dataclass
class Encoded:
    """Pictures as an arm shows them.

    Args:
        tokens (Tensor): (n, most tokens, width) float32, zeros behind a picture's last one.
        places (Tensor): (n, most tokens, 4) float32, what each token shows: top, left, bottom and
            right over the picture's longer side.
        blank (Tensor): (n, most tokens) bool, behind the last one.
        views (Tensor): (n,) int64, views of each picture.
    """

    tokens: Tensor
    places: Tensor
    blank: Tensor
    views: Tensor


class Reader(nn.Module):
    """A small transformer that is asked what digit stands in each quarter of a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH))
        self.place = nn.Linear(_waves(torch.zeros(1, 4)).shape[1], WIDTH)
        self.question = nn.Parameter(torch.randn(WIDTH))
        layer = nn.TransformerEncoderLayer(
            WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, KINDS))

    def forward(self, seen: Encoded, chosen: Tensor, quarters: Tensor) -> Tensor:
        """Logits (B, DIGITS, KINDS) for what stands in ``quarters`` (B, DIGITS, 4)."""
        tokens = self.project(seen.tokens[chosen]) + self.place(_waves(seen.places[chosen]))
        hidden = self.body(
            torch.cat([self.question + self.place(_waves(quarters)), tokens], dim=1),
            src_key_padding_mask=F.pad(seen.blank[chosen], (DIGITS, 0)),
        )
        logits: Tensor = self.head(hidden[:, :DIGITS])
        return logits


def _waves(places: Tensor) -> Tensor:
    """Sines and cosines of the middle of rectangles (..., 4), the middle and the sides."""
    middle, sides = (places[..., :2] + places[..., 2:]) / 2, places[..., 2:] - places[..., :2]
    angles = middle[..., None] * torch.pi * 2.0 ** torch.arange(4)
    waves = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)
    return torch.cat([waves, middle, sides], dim=-1)


def make_tower(artist: Artist, sizes: Sizes) -> tuple[Tower, float]:
    """A frozen tower, and its share of right names of new patches that show a digit."""
    tower = Tower()
    squares, shown = artist.patches(sizes.squares)

    def loss() -> Tensor:
        chosen = torch.randint(0, len(squares), (sizes.batch,))
        return F.cross_entropy(tower(squares[chosen]).flatten(0, 1), shown[chosen].flatten())

    learn(tower, sizes.tower_steps, 3e-3, loss)
    pixels, labels = artist.patches(256)
    with torch.no_grad():
        right = (tower(pixels).argmax(-1) == labels)[labels < KINDS].float().mean()
    return tower.requires_grad_(False), float(right)


@torch.no_grad()
def encode(tower: Tower, arm: Arm, pictures: Pictures) -> Encoded:
    """Tokens of all pictures; views of one size go through the tower together."""
    grid = (arm.tokens, arm.tokens)

    @cache
    def shown(height: int, width: int) -> Tensor:
        table = arm.views.view_table(height, width)
        boxes = torch.cat([rectangles(grid_token_map(view, grid)) for view in table])
        return (boxes / max(height, width)).float()

    sizes: dict[Grid, list[tuple[int, Tensor]]] = defaultdict(list)
    places, owners = [], []
    for number, image in enumerate(pictures.images):
        places.append(shown(image.height, image.width))
        for pixels in arm.views.pixels(image):
            sizes[pixels.shape[1], pixels.shape[2]].append((len(owners), pixels))
            owners.append(number)
    tokens = torch.empty(len(owners), arm.tokens**2, WIDTH)
    for size, views in sizes.items():
        features = tower.features(torch.stack([pixels for _, pixels in views]))
        maps = features.unflatten(1, TOWER.grid_of(*size)).permute(0, 3, 1, 2)
        pooled = F.adaptive_avg_pool2d(maps, grid).flatten(2).transpose(1, 2)
        tokens[[number for number, _ in views]] = pooled
    views_of = torch.bincount(torch.tensor(owners))
    rows = [part.flatten(0, 1) for part in tokens.split(views_of.tolist())]
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    blank = torch.arange(padded.shape[1]) >= (views_of * arm.tokens**2)[:, None]
    return Encoded(padded, nn.utils.rnn.pad_sequence(places, batch_first=True), blank, views_of)


def make_reader(seen: Encoded, pictures: Pictures, sizes: Sizes) -> Reader:
    """A reader that has learned from these pictures."""
    reader = Reader()
    chooser = torch.Generator().manual_seed(0)

    def loss() -> Tensor:
        chosen = torch.randint(0, len(seen.tokens), (sizes.batch,), generator=chooser)
        logits = reader(seen, chosen, pictures.quarters[chosen])
        return F.cross_entropy(logits.flatten(0, 1), pictures.digits[chosen].flatten())

    learn(reader, sizes.reader_steps, 3e-3, loss)
    return reader


@torch.no_grad()
def score(reader: Reader, asked: Encoded, pictures: Pictures) -> Tensor:
    """Share of each picture's digits that are read, (n,)."""
    parts = torch.arange(len(asked.tokens)).split(100)
    answers = [reader(asked, part, pictures.quarters[part]).argmax(-1) for part in parts]
    return (torch.cat(answers) == pictures.digits).float().mean(1)


@dataclass
class Row:
    """What one seed gives.

    Args:
        aspects (Tensor): (n,), of the pictures that were asked about.
        right: Arm -> share of each picture's digits that were read, (n,).
        views: Arm -> mean views a picture.
        tokens: Arm -> mean tokens a picture.
    """

    aspects: Tensor
    right: dict[str, Tensor]
    views: dict[str, float]
    tokens: dict[str, float]


def run_seed(seed: int, tower: Tower, sizes: Sizes) -> Row:
    """All arms with pictures and reader weights of one seed."""
    artist = Artist(seed + 1)
    train, test = artist.pictures(sizes.train), artist.pictures(sizes.test)
    row = Row(test.aspects, {}, {}, {})
    for name, arm in make_arms().items():
        torch.manual_seed(seed)
        asked = encode(tower, arm, test)
        reader = make_reader(encode(tower, arm, train), train, sizes)
        row.right[name] = score(reader, asked, test)
        row.views[name] = round(float(asked.views.float().mean()), 2)
        row.tokens[name] = round(float((~asked.blank).sum(1).float().mean()), 1)
    return row


def summarise(rows: list[Row]) -> dict[str, Any]:
    """Percent read and gains over `square` in points, of all pictures and by shape."""
    bands = {"all": (0.0, float("inf"))} | {
        f"{low:g} to {high:g}": (low, high) for low, high in BANDS
    }
    found: dict[str, Any] = {}
    for band, (low, high) in bands.items():
        inside = [(row.aspects >= low) & (row.aspects < high) for row in rows]
        right = {
            arm: [row.right[arm][chosen] for row, chosen in zip(rows, inside, strict=True)]
            for arm in rows[0].right
        }
        found[band] = {"pictures": int(sum(chosen.sum() for chosen in inside))}
        found[band] |= {arm: bootstrap(values) for arm, values in right.items()}
        for arm in ("uhd-slices", "large square"):
            gain = [a - b for a, b in zip(right[arm], right["square"], strict=True)]
            found[band][f"{arm} minus square"] = bootstrap(gain)
    return found


def main() -> None:
    """Run the seeds, print and write the result after each."""
    options = seed_parser(__doc__, RESULT).parse_args()
    torch.set_num_threads(options.threads)
    started = time.process_time()
    torch.manual_seed(0)
    tower, right = make_tower(Artist(0), Sizes())
    made = {"patches named": round(right, 3), "core_seconds": round(time.process_time() - started)}
    print(made, flush=True)
    rows: list[Row] = []
    seconds: list[int] = []
    for seed in range(options.seeds):
        started = time.process_time()
        rows.append(run_seed(seed, tower, Sizes()))
        seconds.append(round(time.process_time() - started))
        points = summarise(rows)
        means = [{k: round(100 * float(v.mean()), 2) for k, v in r.right.items()} for r in rows]
        print(means[-1], f"{seconds[-1]} s", flush=True)
        result = {
            "what": "percent of digits read in long pictures; intervals over seeds and pictures",
            "bars": BARS,
            "sizes": asdict(Sizes()),
            "tower": made,
            "views a picture": rows[0].views,
            "tokens a picture": rows[0].tokens,
            "points": points,
            "seeds": means,
            "core_seconds": seconds,
            "machine": machine(),
        }
        write(options.out, result)
    for band, found in points.items():
        for name, row in found.items():
            if name != "pictures":
                print(
                    f"{band:12} {name:26} {row['mean']:6.1f} [{row['low']:.1f}, {row['high']:.1f}]"
                )


if __name__ == "__main__":
    main()
