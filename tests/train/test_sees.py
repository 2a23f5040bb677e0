"""A tiny model of random weights learns to see: far better with its pictures than without."""

import random

import pytest
import torch
from PIL import Image, ImageDraw

from vistoken.api import load
from vistoken.eval.run import EvalOptions, evaluate
from vistoken.eval.tasks import read_tasks
from vistoken.train.config import parse_config
from vistoken.train.run import train

from .conftest import row, write_lines

COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 160, 30), "white": (250,) * 3}
SHAPES = ("square", "bar")
FULL = {"train": "full", "lr": 3e-3}


def make(folder, count, seed):
    """Pictures of one thing somewhere, and two questions about each."""
    chooser, rows = random.Random(seed), []
    for number in range(count):
        colour, shape = chooser.choice(list(COLOURS)), chooser.choice(SHAPES)
        picture = Image.new("RGB", (32, 32), (100, 100, 100))
        height, width = (14, 14) if shape == "square" else (7, 28)
        top, left = chooser.randint(0, 32 - height), chooser.randint(0, 32 - width)
        box = (left, top, left + width - 1, top + height - 1)
        ImageDraw.Draw(picture).rectangle(box, fill=COLOURS[colour])
        name = f"{seed}-{number}.png"
        picture.save(folder / name)
        rows.append(row(f"{name}-c", name, "Which colour?", colour, "colour"))
        rows.append(row(f"{name}-s", name, "Which shape?", shape, "shape"))
    write_lines(folder / f"{seed}.jsonl", rows)
    return folder / f"{seed}.jsonl"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_answers_come_from_the_picture(tmp_path):
    stage = {
        "name": "see",
        "groups": dict.fromkeys(("vision", "connector", "spatial", "language"), FULL),
        "steps": 250,
        "images_per_step": 16,
        "pack_samples": True,
        "log_every": 50,
    }
    config = parse_config(
        {
            "recipe": "pico",
            "data": [str(make(tmp_path, 256, 1))],
            "output": str(tmp_path / "run"),
            "precision": "float32",
            "stages": [stage],
        }
    )
    report = train(config)
    model, processor = load(report.model, device="cpu", dtype="float32")
    tasks = read_tasks([make(tmp_path, 60, 2)])
    with torch.no_grad():
        summary = evaluate(model, processor, tasks, tmp_path / "out", EvalOptions(grey=True), "x")
    found = summary["tasks"]["2"]
    for kind, points in (("all", 0.3), ("colour", 0.5), ("shape", 0.1)):
        gain = found[kind]["model"]["value"] - found[kind]["grey"]["value"]
        assert gain >= points, (kind, found[kind])
