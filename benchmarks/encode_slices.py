"""Encoding slices of several shapes, grouped by shape, beside the same pixels in one shape.

    python benchmarks/encode_slices.py [--rounds 20] [--hidden 192] [--layers 6] [--device cuda]
        [--out FILE]

Four pictures of different form become `uhd-slices` of a random CLIP tower of patch 14 and 336
pixels; the tower reads them grouped by shape. In turns with it, the same tower reads about as many
pixels as views of 336 x 336, all of one shape, through the same function; times are compared per
pixel. One thread. Bar: at most 1.1. Seconds of the processor stand beside those of the clock: they
can be trusted on a busy machine as well. On a GPU only the clock counts, and all is in bfloat16.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from paired import Times, compare, machine, now, take_turns, write
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from vistoken.core.tables import VIEW
from vistoken.models.encoder import encode_views
from vistoken.models.pipeline import TowerSpec
from vistoken.systems.llava_uhd.config import UhdSlicesConfig
from vistoken.systems.llava_uhd.views import UhdSlices

BAR = 1.1
SIDE, PATCH = 336, 14
PICTURES = ((1344, 1344), (672, 1008), (480, 640), (1300, 500))
RESULTS = Path(__file__).parent / "results"


def make_tower(hidden: int, layers: int) -> CLIPVisionModel:
    """Build the random tower."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        image_size=SIDE,
        patch_size=PATCH,
        attn_implementation="sdpa",
    )
    return CLIPVisionModel(config).eval()


def noise(table: Tensor) -> list[Tensor]:
    """Pixels of every view of a table."""
    sizes = zip(VIEW.get(table, "height").tolist(), VIEW.get(table, "width").tolist(), strict=True)
    return [torch.randn(3, int(height), int(width)) for height, width in sizes]


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--device", default="cpu", help="cuda: in bfloat16, a file of its own")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    on_gpu = device.type == "cuda"
    place: dict[str, Any] = {"device": device, "dtype": torch.bfloat16 if on_gpu else torch.float32}
    tower = make_tower(options.hidden, options.layers).to(**place)
    spec = TowerSpec("clip", (SIDE, SIDE), PATCH, options.hidden, prefix=1)
    towers = [(spec, -2, tower)]
    views = UhdSlices(UhdSlicesConfig(), [spec.input])
    sliced = torch.cat([views.view_table(*size) for size in PICTURES])
    slices = [view.to(**place) for view in noise(sliced)]
    pixels = sum(view.shape[1] * view.shape[2] for view in slices)
    count = round(pixels / SIDE**2)
    square = VIEW.make(count, height=SIDE, width=SIDE, bottom=SIDE, right=SIDE)
    squares = [view.to(**place) for view in noise(square)]

    def run(given: list[Tensor], table: Tensor, share: float) -> Callable[[], Times]:
        @torch.inference_mode()
        def once() -> Times:
            started, used = now(device), time.process_time()
            encode_views(towers, given, table)
            times = {"clock": (now(device) - started) * share}
            return times if on_gpu else times | {"cores": (time.process_time() - used) * share}

        return once

    one = run(squares, square, pixels / (count * SIDE**2))
    measured = take_turns(
        {"slices": run(slices, sliced, 1.0), "one shape": one, "one shape again": one},
        rounds=options.rounds,
    )
    rows: dict[str, Any] = {
        name: {
            phase: compare(measured[name][phase], measured["one shape"][phase])
            for phase in (("clock",) if on_gpu else ("cores", "clock"))
        }
        for name in ("slices", "one shape again")
    }
    shapes = Counter(f"{view.shape[1]}x{view.shape[2]}" for view in slices)
    name = "encode_slices_cuda.json" if on_gpu else "encode_slices.json"
    write(
        options.out or RESULTS / name,
        {
            "what": "time per pixel of slices grouped by shape / of views of one shape, one thread",
            "bar": f"at most {BAR}",
            "tower": f"clip, hidden {options.hidden}, {options.layers} layers, patch {PATCH}",
            "pictures": PICTURES,
            "slices": dict(shapes),
            "one_shape": {f"{SIDE}x{SIDE}": count},
            "pixels": [pixels, count * SIDE**2],
            "rounds": options.rounds,
            "to_one_shape": rows,
            "machine": machine(device),
        },
    )
    for name, row in rows.items():
        told = row["clock" if on_gpu else "cores"]
        print(
            f"{name:16} {told['ratio']:.3f} [{told['low']:.3f}, {told['high']:.3f}]  "
            f"{told['ms']:.0f} ms for {pixels:,} pixels in {len(shapes)} shapes"
        )


if __name__ == "__main__":
    main()
