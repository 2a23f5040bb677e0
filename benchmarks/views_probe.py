"""What the views of the study `views` hold before any reader: a linear probe of frozen features.

For every thing on a large scene the probe gets one vector: the mean of the tower's cells over which
the thing lies (weighted by the share of the cell that it covers), of all tiles or slices that show
it, or of the whole picture where an arm has no tiles. One linear classifier per kind of thing is
fitted on the training scenes and asked about the held-out ones. It is told where the thing is, so
it is a ceiling for what a language model can read from these features, not a rival.

Run `vistoken study views` first; its scenes and its feature cache are used.

    python benchmarks/views_probe.py runs/views-tiny [--size tiny] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from paired import machine, write
from torch import Tensor, nn

from vistoken.core.chain import grid_token_map
from vistoken.core.tables import VIEW, ViewKind, rectangles
from vistoken.data.scenes.large import ANSWERS
from vistoken.eval.scoring import bootstrap_mean
from vistoken.models.build import build
from vistoken.models.pipeline import anchor_rows
from vistoken.study.grid import make_grid
from vistoken.study.settings import load_study
from vistoken.train.cache import FeatureCache, fast_compute

ROOT = Path(__file__).parent.parent
WEIGHT_DECAY = 1e-2
"""Times the mean squared weight, added to the mean cross-entropy of standardised features."""


def covered(boxes: Tensor, thing: Tensor) -> Tensor:
    """Share of every box (N, 4) that a thing's box (4,) covers, (N,)."""
    top_left = torch.maximum(boxes[:, :2], thing[:2])
    bottom_right = torch.minimum(boxes[:, 2:], thing[2:])
    shared = (bottom_right - top_left).clamp(min=0).prod(dim=1)
    return shared / (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)


def thing_vector(features: list[Tensor], views: Tensor, thing: Tensor) -> Tensor:
    """Mean feature of the cells that show a thing.

    Args:
        features: One (rows, cols, width) per view.
        views (Tensor): (V, K) int64, the same views.
        thing (Tensor): (4,) float64, its box in the original.

    Returns:
        (width,) float32.
    """
    kinds = VIEW.get(views, "kind")
    tiles = (kinds == int(ViewKind.TILE)) | (kinds == int(ViewKind.SLICE))
    chosen = torch.nonzero(tiles if tiles.any() else kinds == int(ViewKind.GLOBAL)).flatten()
    cells, shares = [], []
    for number in chosen.tolist():
        rows, cols, _ = features[number].shape
        cells.append(features[number].flatten(0, 1).float())
        shares.append(
            covered(rectangles(grid_token_map(views[number], (rows, cols))), thing).float()
        )
    share = torch.cat(shares)
    return share @ torch.cat(cells) / share.sum()


def fit(vectors: Tensor, labels: Tensor, classes: int) -> nn.Linear:
    """Multinomial logistic regression by L-BFGS on (N, width) float32 and (N,) int64."""
    linear = nn.Linear(vectors.shape[1], classes)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    optimiser = torch.optim.LBFGS(linear.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(linear(vectors), labels)
        loss = loss + WEIGHT_DECAY * linear.weight.square().sum(dim=1).mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    return linear


def read_things(
    cache: FeatureCache, root: Path, split: str
) -> dict[str, tuple[Tensor, list[int], list[str]]]:
    """Kind -> (vectors (N, width), number of each answer, picture of each thing)."""
    found: dict[str, tuple[list[Tensor], list[int], list[str]]] = {k: ([], [], []) for k in ANSWERS}
    for line in (root / f"{split}.truth.jsonl").read_text(encoding="utf-8").splitlines():
        scene = json.loads(line)
        cached = cache.get(root / scene["image"])
        views = cached.view_table[anchor_rows(cached.view_table)]
        features = [maps[0] for maps in cached.tower_features]
        for thing in scene["things"]:
            vectors, labels, pictures = found[thing["kind"]]
            box = torch.tensor(thing["box"], dtype=torch.float64)
            vectors.append(thing_vector(features, views, box))
            labels.append(ANSWERS[thing["kind"]].index(thing["answer"]))
            pictures.append(scene["image"])
    return {kind: (torch.stack(v), n, p) for kind, (v, n, p) in found.items()}


def probe(cache: FeatureCache, root: Path) -> dict[str, Any]:
    """Share of held-out things that the probe names, by kind, with an interval over pictures."""
    train, held_out = read_things(cache, root, "train"), read_things(cache, root, "val")
    result: dict[str, Any] = {}
    for kind, answers in ANSWERS.items():
        vectors, labels, _ = train[kind]
        mean, spread = vectors.mean(0), vectors.std(0) + 1e-6
        linear = fit((vectors - mean) / spread, torch.tensor(labels), len(answers))
        asked, truth, pictures = held_out[kind]
        with torch.no_grad():
            said = linear((asked - mean) / spread).argmax(dim=1)
        right = (said == torch.tensor(truth)).float().tolist()
        estimate = bootstrap_mean(right, pictures)
        result[kind] = {
            "n": len(right),
            **{k: round(getattr(estimate, k), 4) for k in ("value", "low", "high")},
        }
    return result


def main() -> None:
    """Probe every arm whose features are there, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("study", type=Path, help="folder of the study `views`")
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/views_probe.json")
    options = parser.parse_args()
    grid = make_grid(load_study("views"), options.size)
    arms = {}
    for arm in grid.arms:
        model, processor = build(grid.arm_recipe(arm))
        cache = FeatureCache(options.study / "features", model, processor, fast_compute())
        arms[arm] = probe(cache, options.study / "scenes")
        print(arm, json.dumps(arms[arm]), flush=True)
    write(
        options.out,
        {
            "what": "share of held-out things that a linear probe of the tower's features names",
            "size": options.size,
            "chance": {kind: round(1 / len(answers), 4) for kind, answers in ANSWERS.items()},
            "arms": arms,
            "machine": machine(),
        },
    )


if __name__ == "__main__":
    main()
