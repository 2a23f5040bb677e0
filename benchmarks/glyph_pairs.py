"""Whether INF-LLaVA's enhancement compares what lies in different tiles, and what counts a scene.

    python benchmarks/glyph_pairs.py [--seeds 3] [--threads 1] [--reader pooled] [--out FILE]

A tiny ViT learns the glyphs of tiles and of strided views alike, and is then frozen. `inf-dcm` cuts
scenes with n = 2; `inf-dem` makes one view's tokens of the features, and a small reader learns

- pairs: whether two glyphs in two different tiles are equal, with the enhancement (`dual`), with
  both perspectives averaged (`mean`), and with pooled tiles only (`local`);
- crowds: how many glyphs a scene shows, cut by borders of tiles or not, from strided views only
  (`global`) and from tiles only (`local`), without the undivided view.

The reader is `pooled`: a projector of two layers, the mean over tokens and one linear layer, which
adds tokens up but compares none. With `--reader attending` a transformer of two layers stands
behind the projector and can compare tokens itself. There is one ViT; every seed draws scenes and
all other weights anew. All arms take equal steps from equal scenes. About three minutes of a core.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from glyph_pairs_drawing import KINDS, LARGE, MOST, PATCH, SIDE, TOWER, Artist, N, Scenes
from paired import machine, write
from PIL import Image
from tiny import bootstrap, learn, seed_parser, tiny_vit
from torch import Tensor, nn

from vistoken.core.parts import ConnectorState, StageContext
from vistoken.systems.inf_llava.config import InfDcmConfig, InfDemConfig
from vistoken.systems.inf_llava.stage import InfDem
from vistoken.systems.inf_llava.views import InfDcm

RESULT = Path(__file__).parent / "results" / "glyph_pairs.json"
WIDTH, RATE = 48, 2e-3
PARTS = {
    ("pairs", "dual"): InfDemConfig(heads=4),
    ("pairs", "mean"): InfDemConfig(mode="mean"),
    ("pairs", "local"): InfDemConfig(mode="local"),
    # the undivided view shows the whole scene itself and would hide which other views do
    ("crowds", "global"): InfDemConfig(mode="global", fuse_base="none"),
    ("crowds", "local"): InfDemConfig(mode="local", fuse_base="none"),
}
DIFFERENCES = (
    ("pairs", "dual", "local"),
    ("pairs", "dual", "mean"),
    ("crowds", "global", "local"),
)
READERS = ("pooled", "attending")
BARS = {
    "pairs": "dual at least 10 points above local",
    "crowds": "global above local",
}


@dataclass(frozen=True)
class Sizes:
    """How much is learned and asked."""

    views: int = 6000
    tower_steps: int = 800
    train: int = 1000
    test: int = 500
    reader_steps: int = 300
    batch: int = 32


class Tower(nn.Module):
    """A tiny ViT with the heads that it learns by."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = tiny_vit((SIDE, SIDE), PATCH, WIDTH)
        self.kinds = nn.Linear(WIDTH, KINDS + 1)
        self.numbers = nn.Linear(WIDTH, MOST + 1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, patches, kinds and paper) and (B, numbers from none)."""
        hidden = self.features(pixels)
        return self.kinds(hidden), self.numbers(hidden.mean(1))

    def features(self, pixels: Tensor) -> Tensor:
        """Patch features (B, patches, width)."""
        hidden: Tensor = self.vit(pixels).last_hidden_state[:, 1:]
        return hidden


class Model(nn.Module):
    """`inf-dem`, a projector and a reader.

    Args:
        options: Of `inf-dem`.
        answers: Number of possible answers.
        attends: Whether the reader's tokens see each other.
    """

    def __init__(self, options: InfDemConfig, answers: int, attends: bool) -> None:
        super().__init__()
        context = StageContext((WIDTH,), WIDTH, TOWER.grid, WIDTH)
        self.fuse = InfDem(options, context)
        self.project = nn.Sequential(
            nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)
        )
        self.body: nn.Module = nn.Identity()
        if attends:
            layer = nn.TransformerEncoderLayer(
                WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True, norm_first=True
            )
            self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, answers)

    def forward(self, features: Tensor, table: Tensor) -> Tensor:
        """Logits (B, answers) for features (B, views, patches, width) of views (views, K)."""
        batch, views = features.shape[:2]
        state = ConnectorState(
            view_table=table.repeat(batch, 1),
            anchors=list(range(batch * views)),
            features=[()] * (batch * views),
            tokens=list(features.flatten(0, 1)),
            grids=[TOWER.grid] * (batch * views),
        )
        tokens = torch.stack(self.fuse(state).tokens)
        logits: Tensor = self.head(self.body(self.project(tokens)).mean(1))
        return logits


def make_tower(artist: Artist, sizes: Sizes) -> tuple[Tower, dict[str, float]]:
    """A frozen tower, and what it names and counts right in new views."""
    tower = Tower()
    seen, shown, many = artist.views(sizes.views)

    def loss() -> Tensor:
        chosen = torch.randint(0, len(seen), (sizes.batch,))
        named, counted = tower(seen[chosen])
        naming = F.cross_entropy(named.flatten(0, 1), shown[chosen].flatten())
        return naming + F.cross_entropy(counted, many[chosen])

    learn(tower, sizes.tower_steps, 3e-3, loss)
    pixels, kinds, numbers = artist.views(512)
    with torch.no_grad():
        named, counted = tower(pixels)
    found: dict[str, float] = {}
    for name, chosen in (("tiles", slice(0, None, 2)), ("strided views", slice(1, None, 2))):
        shown = kinds[chosen] < KINDS
        right = (named[chosen].argmax(-1) == kinds[chosen])[shown].float().mean()
        counts = (counted[chosen].argmax(-1) == numbers[chosen]).float().mean()
        found[f"glyphs of {name} named"] = round(float(right), 3)
        found[f"{name} counted"] = round(float(counts), 3)
    return tower.requires_grad_(False), found


@dataclass
class Seen:
    """Scenes as a model gets them.

    Args:
        features (Tensor): (scenes, views, patches, width) float32.
        table (Tensor): (views, K), the rows of the ViewTable, the same for every scene.
        answers (Tensor): (scenes,) int64.
        cut (Tensor): (scenes,) int64, glyphs through which a tile's border runs.
    """

    features: Tensor
    table: Tensor
    answers: Tensor
    cut: Tensor


@torch.no_grad()
def encode(tower: Tower, scenes: Scenes) -> Seen:
    """Features of the views that `inf-dcm` makes of each scene."""
    views = InfDcm(InfDcmConfig(n=N, fit="square"), [TOWER])
    pictures = [Image.fromarray(levels).convert("RGB") for levels in scenes.levels]
    pixels = torch.stack([torch.stack(views.pixels(picture)) for picture in pictures])
    features = [tower.features(part.flatten(0, 1)) for part in pixels.split(32)]
    found = torch.cat(features).unflatten(0, pixels.shape[:2])
    return Seen(found, views.view_table(LARGE, LARGE), scenes.answers, scenes.cut)


def make_model(options: InfDemConfig, attends: bool, seen: Seen, sizes: Sizes) -> Model:
    """A model that has learned from these scenes."""
    model = Model(options, int(seen.answers.max()) + 1, attends)
    chooser = torch.Generator().manual_seed(0)

    def loss() -> Tensor:
        chosen = torch.randint(0, len(seen.answers), (sizes.batch,), generator=chooser)
        logits = model(seen.features[chosen], seen.table)
        return F.cross_entropy(logits, seen.answers[chosen])

    learn(model, sizes.reader_steps, RATE, loss)
    return model


@torch.no_grad()
def score(model: Model, asked: Seen) -> Tensor:
    """1 for every right answer, (scenes,)."""
    parts = asked.features.split(100)
    answers = torch.cat([model(part, asked.table).argmax(-1) for part in parts])
    return (answers == asked.answers).float()


def run_seed(seed: int, tower: Tower, sizes: Sizes, attends: bool) -> dict[str, Tensor]:
    """Right answers of all arms with scenes and weights of one seed, and which scenes are cut."""
    artist = Artist(seed + 1)
    right: dict[str, Tensor] = {}
    for task, draw in (("pairs", artist.pairs), ("crowds", artist.crowds)):
        seen, asked = encode(tower, draw(sizes.train)), encode(tower, draw(sizes.test))
        for arm in (arm for of, arm in PARTS if of == task):
            torch.manual_seed(seed)
            model = make_model(PARTS[task, arm], attends, seen, sizes)
            right[f"{task}: {arm}"] = score(model, asked)
        right[f"{task}: cut"] = asked.cut
    return right


def summarise(rows: list[dict[str, Tensor]]) -> dict[str, Any]:
    """Percent right and differences in points, and for crowds by how many glyphs are cut."""

    def points(name: str, minus: str | None = None, cut: range | None = None) -> dict[str, float]:
        values = []
        for row in rows:
            right = row[name] if minus is None else row[name] - row[minus]
            if cut is not None:
                right = right[(row["crowds: cut"] >= cut.start) & (row["crowds: cut"] < cut.stop)]
            values.append(right)
        return bootstrap(values)

    found = {name: points(name) for name in rows[0] if not name.endswith(": cut")}
    for task, better, worse in DIFFERENCES:
        found[f"{task}: {better} minus {worse}"] = points(f"{task}: {better}", f"{task}: {worse}")
    for arm in ("global", "local"):
        name = f"crowds: {arm}"
        found[f"{name}, no glyph cut"] = points(name, cut=range(1))
        found[f"{name}, two or more cut"] = points(name, cut=range(2, MOST + 1))
    return found


def main() -> None:
    """Run the seeds, print and write the result after each."""
    parser = seed_parser(__doc__, RESULT)
    parser.add_argument("--reader", choices=READERS, default=READERS[0])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    started = time.process_time()
    torch.manual_seed(0)
    tower, learned = make_tower(Artist(0), Sizes())
    learned["core_seconds"] = round(time.process_time() - started)
    print(learned, flush=True)
    rows: list[dict[str, Tensor]] = []
    seconds: list[int] = []
    for seed in range(options.seeds):
        started = time.process_time()
        rows.append(run_seed(seed, tower, Sizes(), options.reader == "attending"))
        seconds.append(round(time.process_time() - started))
        points = summarise(rows)
        means = [
            {k: round(100 * float(v.mean()), 2) for k, v in r.items() if not k.endswith(": cut")}
            for r in rows
        ]
        print(means[-1], f"{seconds[-1]} s", flush=True)
        result = {
            "what": "percent of right answers; intervals over seeds and scenes",
            "reader": options.reader,
            "bars": BARS,
            "sizes": asdict(Sizes()),
            "tower": learned,
            "points": points,
            "seeds": means,
            "core_seconds": seconds,
            "machine": machine(),
        }
        write(options.out, result)
    for name, row in points.items():
        print(f"{name:45} {row['mean']:6.1f} [{row['low']:.1f}, {row['high']:.1f}]")


if __name__ == "__main__":
    main()
