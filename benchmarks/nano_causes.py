"""Why nano misses its targets: what its visual tokens hold, what its adapter does to plain text.

    python benchmarks/nano_causes.py --data SCENES [--cache DIR]

SCENES is the folder of vistoken-scenes 1 that nano was trained on. The visual tokens of held-out
scenes are read without the language model, by nothing but their cosine to the embeddings of names:

- names: the nearest name over the cells of each object's box, which is the ceiling of naming;
- places: relation questions answered by comparing where the two names lie;
- numbers: connected cells of one name counted, a single cell taken for an error of the tokens.

Then the vectors of rows and columns, and the language model's perplexity with a part of what
training added to its weights, from none to all. Nothing is trained. About ten minutes of one core,
less with the feature cache of training.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nano_accuracy import CHECKPOINT, digests
from nano_weights import place_vectors, strengths
from paired import machine, write
from torch import Tensor

import vistoken
from vistoken.core.tables import rectangles
from vistoken.eval.scoring import bootstrap_mean
from vistoken.train.alignment import NameSpace, PatchTokens
from vistoken.train.cache import FeatureCache, fast_compute
from vistoken.train.encoders import CachedEncoder, Encoder, PixelEncoder, encode_patches
from vistoken.train.scenes import Scene, read_scenes, vocabulary

RESULT = Path(__file__).parent / "results" / "nano_causes.json"
PICTURES = {"val": 150, "style": 60}
BATCH = 6
LEAST_CELLS = 2


def main() -> None:
    """Read the tokens, weaken the adapter, write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--data", type=Path, required=True, help="folder of vistoken-scenes 1")
    parser.add_argument("--cache", type=Path, help="feature cache of training")
    parser.add_argument("--windows", type=int, default=6, help="of held-out text")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    provenance = digests(options.checkpoint, options.data)
    model, processor = vistoken.load(options.checkpoint)
    encode: Encoder = PixelEncoder(processor)
    if options.cache is not None:
        encode = CachedEncoder(FeatureCache(options.cache, model, processor, fast_compute()))
    known = [scene for s in ("train", *PICTURES) for scene in scenes(options.data, s)]
    words = NameSpace(model, processor.tokenizer, vocabulary(known))
    colours = {scene.background for scene in known}
    reader = Reader(words, torch.tensor([word not in colours for word in words.words]))
    result = {
        "what": "answers read off nano's patch tokens without its language model, and perplexity "
        "with a part of what training added to the language model",
        "interval": "95 %, bootstrap over pictures (perplexity: over windows)",
        **provenance,
        "tokens": {
            split: read(reader, model, encode, options.data, split, count)
            for split, count in PICTURES.items()
        },
        "row_col": place_vectors(model),
        "adapter": strengths(model, processor, options.windows),
        "machine": machine(),
    }
    write(options.out, result)
    print(tables(result))


def scenes(data: Path, split: str) -> list[Scene]:
    """Annotations of a split."""
    return read_scenes(data / f"{split}.scenes.jsonl")


@dataclass(frozen=True)
class Reader:
    """Reads patch tokens by their nearest words.

    Args:
        words: Names and colours as points.
        names: (W,) bool, which of them are names of things.
    """

    words: NameSpace
    names: Tensor

    def name(self, picture: PatchTokens, box: Sequence[float]) -> str | None:
        """The name that the tokens of a box are nearest to; None where no centre lies in it."""
        rows, cols = centres(picture)
        inside = (rows >= box[0]) & (rows < box[2]) & (cols >= box[1]) & (cols < box[3])
        if not bool(inside.any()):
            return None
        mean = self.words.logits(picture.tokens[inside]).log_softmax(-1).mean(0)
        return self.words.words[int(mean.masked_fill(~self.names, -torch.inf).argmax())]

    def place(self, picture: PatchTokens, name: str) -> tuple[float, float]:
        """Where a name lies: the centres of all tokens, weighted by how much they say it."""
        said = self.words.logits(picture.tokens).softmax(-1)[:, self.words.words.index(name)]
        weights = said / said.sum()
        rows, cols = centres(picture)
        return float((weights * rows).sum()), float((weights * cols).sum())

    def number(self, picture: PatchTokens) -> int:
        """How many things: connected cells nearest to one name, larger than a single cell."""
        rows, cols = centres(picture)
        nearest = self.words.logits(picture.tokens).argmax(-1)
        grid = {
            (row, col): int(word)
            for row, col, word in zip(ranks(rows), ranks(cols), nearest, strict=True)
            if self.names[word]
        }
        return sum(size >= LEAST_CELLS for size in connected(grid))


def centres(picture: PatchTokens) -> tuple[Tensor, Tensor]:
    """Rows and columns of the tokens' centres, in pixels."""
    found = rectangles(picture.token_map.cpu()).float()
    return (found[:, 0] + found[:, 2]) / 2, (found[:, 1] + found[:, 3]) / 2


def ranks(values: Tensor) -> list[int]:
    """Number of each value among the different ones, ascending."""
    return list(torch.unique(values, return_inverse=True)[1].tolist())


def connected(grid: dict[tuple[int, int], int]) -> list[int]:
    """Sizes of the areas of cells that hang together and hold the same."""
    left, sizes = dict(grid), []
    while left:
        start, word = left.popitem()
        waiting, size = [start], 0
        while waiting:
            row, col = waiting.pop()
            size += 1
            for near in ((row + 1, col), (row - 1, col), (row, col + 1), (row, col - 1)):
                if left.get(near) == word:
                    del left[near]
                    waiting.append(near)
        sizes.append(size)
    return sizes


@torch.inference_mode()
def read(
    reader: Reader, model: Any, encode: Encoder, data: Path, split: str, count: int
) -> dict[str, Any]:
    """Names, places and numbers of a split's first pictures."""
    shown = scenes(data, split)[:count]
    asked: dict[str, list[dict[str, Any]]] = {}
    for line in (data / f"{split}.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["kind"] == "relation":
            first = row["messages"][0]["content"]
            image = next(part["path"] for part in first if part["type"] == "image")
            asked.setdefault(image, []).append(row)
    right: dict[str, list[tuple[bool, str]]] = {}
    for start in range(0, len(shown), BATCH):
        some = shown[start : start + BATCH]
        pictures = encode_patches(model, encode([data / scene.image for scene in some]))
        for picture, scene in zip(pictures, some, strict=True):
            for name, box in zip(scene.names, scene.boxes, strict=True):
                said = reader.name(picture, box)
                if said is not None:
                    right.setdefault("names", []).append((said == name, scene.image))
            for row in asked.get(scene.image, ()):
                hit = relation(reader, picture, scene, row)
                axis = "above, below" if row["direction"] in ("above", "below") else "left, right"
                right.setdefault(axis, []).append((hit, scene.image))
            hit = reader.number(picture) == len(scene.names)
            right.setdefault("numbers", []).append((hit, scene.image))
            if len(scene.names) > 2:
                right.setdefault("numbers, three and more", []).append((hit, scene.image))
    return {name: share(hits) for name, hits in right.items()}


def relation(reader: Reader, picture: PatchTokens, scene: Scene, row: dict[str, Any]) -> bool:
    """Whether the right one of the two things lies further in the direction that is asked."""
    parts = row["messages"][0]["content"]
    question = " ".join(part["text"] for part in parts if part["type"] == "text")
    # of two names that are both in the text, as "cake" in "pancake", the longer one is meant
    other = max((n for n in scene.names if n in question and n != row["answer"]), key=len)
    right, wrong = (reader.place(picture, name) for name in (row["answer"], other))
    axis = 0 if row["direction"] in ("above", "below") else 1
    sign = 1 if row["direction"] in ("below", "right") else -1
    return sign * (right[axis] - wrong[axis]) > 0


def share(hits: Sequence[tuple[bool, str]]) -> dict[str, Any]:
    """A share with its interval."""
    mean = bootstrap_mean([float(hit) for hit, _ in hits], [image for _, image in hits])
    return {"n": mean.n} | {k: round(getattr(mean, k), 4) for k in ("value", "low", "high")}


def tables(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    lines = ["| Read off the patch tokens | `val` | `style` |", "| --- | --: | --: |"]
    for name in result["tokens"]["val"]:
        cells = []
        for split in PICTURES:
            found = result["tokens"][split][name]
            value, low, high = (100 * found[k] for k in ("value", "low", "high"))
            cells.append(f"{value:.0f} [{low:.0f}, {high:.0f}] (n {found['n']})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "| Share of the change | perplexity / untouched |", "| --: | --: |"]
    for strength, ratio in result["adapter"]["ratio"].items():
        shown = f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"
        lines.append(f"| {float(strength):.2f} | {shown} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
