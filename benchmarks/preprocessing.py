"""Pictures prepared per second by each view function, beside `transformers`' llava-next processor.

    python benchmarks/preprocessing.py [--rounds 20] [--side 1344] [--out FILE]

One picture of 1,344 x 1,344 pixels, already decoded, at the size of CLIP-L/14-336, one thread:
every view function takes turns with `transformers`' own llava-next processor, and the ratio of each
pair is reported. `anyres` is that processor's work exactly, and its pixels are checked to be the
same; the others cut other views. Bar: at least 1.5 times its pictures per second. Seconds of the
processor stand beside those of the clock: they can be trusted on a busy machine as well.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paired import Times, compare, machine, take_turns, write
from PIL import Image
from transformers import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)

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
    runs["llava-next"] = timed(lambda: reference(image, return_tensors="pt"))
    runs["llava-next again"] = runs["llava-next"]
    measured = take_turns(runs, rounds=options.rounds)
    rows = {}
    for name in (*VIEWS, "llava-next again"):
        row: dict[str, Any] = {
            phase: compare(measured["llava-next"][phase], measured[name][phase])
            for phase in ("cores", "clock")
        }
        if name in processors:
            row["views"] = len(processors[name].view_table(options.side, options.side))
        rows[name] = row
    write(
        options.out,
        {
            "what": "pictures per second / transformers' llava-next processor, one thread",
            "bar": f"at least {BAR}",
            "picture": [options.side, options.side],
            "rounds": options.rounds,
            "columns": "ratio of speeds; ms: llava-next, base_ms: ours",
            "same_pixels": "anyres and llava-next",
            "speed": rows,
            "machine": machine(),
        },
    )
    for name, row in rows.items():
        cores = row["cores"]
        print(
            f"{name:18} {cores['ratio']:.2f} [{cores['low']:.2f}, {cores['high']:.2f}]  "
            f"{cores['base_ms']:.1f} ms, {row.get('views', 5)} views"
        )


if __name__ == "__main__":
    main()
