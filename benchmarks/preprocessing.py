"""Pictures prepared per second by each view function, beside `transformers`' llava-next processor.

    python benchmarks/preprocessing.py [--rounds 20] [--side 1344] [--out FILE]

One picture of 1,344 x 1,344 pixels, already decoded, at the size of CLIP-L/14-336, one thread:
every view function takes turns with `transformers`' own llava-next processor, and the ratio of each
pair is reported, per picture and per pixel made. `anyres` is that processor's work exactly, and its
pixels are checked to be the same; the others cut other views, some of them more. Bar: at least 1.5
times its pictures per second. "msac, resizing alone" makes that view function's three sizes with
Pillow and nothing else: no exact implementation on Pillow's resize can be faster. Seconds of the
processor stand beside those of the clock: they can be trusted on a busy machine as well.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paired import Times, compare, machine, take_turns, write
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)

from vistoken.core.tables import VIEW
from vistoken.models.image_processing import VistokenImageProcessor
from vistoken.models.recipe import load_recipe

BAR = 1.5
RESULT = Path(__file__).parent / "results" / "preprocessing.json"
VIEWS: dict[str, dict[str, Any]] = {
    "pad": {},
    "anyres": {},
    "uhd-slices": {},
    "inf-dcm": {"n": 3},
    "inf-dcm, live": {"n": 3, "global_views": "live"},
    "msac": {},
}


def picture(side: int) -> Image.Image:
    """Smooth noise; what is shown does not matter to the time."""
    small = np.random.default_rng(0).integers(0, 255, (side // 16, side // 16, 3), np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BILINEAR)


def ours(views: str) -> VistokenImageProcessor:
    """The image processor of a view function at CLIP-L/14-336's size."""
    recipe = load_recipe("llava-1.5-7b")
    spec = recipe.pipeline(recipe.model_config_for()).to_dict()
    options = VIEWS[views]
    part = views.partition(",")[0]
    return VistokenImageProcessor({**spec, "views": {"part": part, "options": options}})


def theirs() -> LlavaNextImageProcessorPil:
    """The processor of llava-v1.6-vicuna-7b."""
    clip = CLIPImageProcessorPil()
    return LlavaNextImageProcessorPil(
        size={"shortest_edge": 336},
        crop_size={"height": 336, "width": 336},
        image_mean=clip.image_mean,
        image_std=clip.image_std,
        image_grid_pinpoints=[[672, 336], [336, 672], [672, 672], [336, 1008], [1008, 336]],
    )


def resizing(sizes: Iterable[tuple[int, int]], image: Image.Image) -> Callable[[], Any]:
    """A function that resizes the picture to every (height, width), by the filter of all views."""
    return lambda: [image.resize(size[::-1], Image.Resampling.BICUBIC) for size in sizes]


def sizes_resized_to(table: Tensor) -> set[tuple[int, int]]:
    """(height, width) of every canvas that views of one size are cut from."""
    columns = [VIEW.get(table, name) for name in ("rows", "cols", "height", "width")]
    return {(rows * h, cols * w) for rows, cols, h, w in torch.stack(columns, -1).tolist()}


def timed(prepare: Callable[[], Any]) -> Callable[[], Times]:
    """A function that prepares once and gives seconds by the clock and of the processor."""

    def run() -> Times:
        started, used = time.perf_counter(), time.process_time()
        prepare()
        return {"clock": time.perf_counter() - started, "cores": time.process_time() - used}

    return run


def check_same(image: Image.Image) -> None:
    """Refuse to time `anyres` unless it gives what llava-next's processor gives."""
    mine = ours("anyres")(image)["pixel_values"]
    other = theirs()(image, return_tensors="pt")["pixel_values"][0]
    if not torch.equal(mine, other):
        raise SystemExit("anyres gives other pixels than transformers' llava-next processor")


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--side", type=int, default=1344)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    image = picture(options.side)
    check_same(image)
    reference = theirs()
    processors = {name: ours(name) for name in VIEWS}
    # the default binds each processor to its own function
    runs = {
        name: timed(lambda processor=processor: processor(image))
        for name, processor in processors.items()
    }
    sizes = sizes_resized_to(processors["msac"].view_table(options.side, options.side))
    runs["msac, resizing alone"] = timed(resizing(sizes, image))
    runs["llava-next"] = timed(lambda: reference(image, return_tensors="pt"))
    runs["llava-next again"] = runs["llava-next"]
    measured = take_turns(runs, rounds=options.rounds)
    theirs_made = made(reference(image, return_tensors="pt")["pixel_values"][0])
    rows = {}
    for name in (*VIEWS, "msac, resizing alone", "llava-next again"):
        row: dict[str, Any] = {
            phase: compare(measured["llava-next"][phase], measured[name][phase])
            for phase in ("cores", "clock")
        }
        if name in processors:
            row |= made(processors[name](image)["pixel_values"])
            share = row["pixels"] / theirs_made["pixels"]
            row["cores_ratio_per_pixel"] = round(row["cores"]["ratio"] * share, 4)
        rows[name] = row
    write(
        options.out,
        {
            "what": "pictures per second / transformers' llava-next processor, one thread",
            "bar": f"at least {BAR}",
            "picture": [options.side, options.side],
            "rounds": options.rounds,
            "columns": "ratio of speeds; ms: llava-next, base_ms: ours; pixels of all views",
            "llava_next": theirs_made,
            "same_pixels": "anyres and llava-next",
            "speed": rows,
            "machine": machine(),
        },
    )
    for name, row in rows.items():
        cores = row["cores"]
        print(
            f"{name:20} {cores['ratio']:.2f} [{cores['low']:.2f}, {cores['high']:.2f}]  "
            f"{cores['base_ms']:.1f} ms, {row.get('views', '-')} views, "
            f"{row.get('pixels', 0):,} pixels, per pixel {row.get('cores_ratio_per_pixel', 0):.2f}"
        )


def made(views: Tensor | list[Tensor]) -> dict[str, int]:
    """How many views a picture became, and how many pixels they have together."""
    return {"views": len(views), "pixels": sum(v.shape[-2] * v.shape[-1] for v in views)}


if __name__ == "__main__":
    main()
