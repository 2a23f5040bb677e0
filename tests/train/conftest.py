"""A few drawn pictures with questions and annotations, and the tiny model."""

import json
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from vistoken.models.build import build
from vistoken.models.recipe import load_recipe

COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 160, 30)}


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def usual_handlers():
    """A test run in the background may have handed down ignored signals."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def pico():
    """Model and processor; tests that change weights take a copy."""
    return build(load_recipe("pico"))


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """``train.jsonl`` with four questions about each of four pictures, and its annotations."""
    root = tmp_path_factory.mktemp("data")
    (root / "images").mkdir()
    rows, scenes = [], []
    for number in range(4):
        colour = list(COLOURS)[number % 3]
        picture = Image.new("RGB", (64, 64), COLOURS[colour])
        box = (8, 8 + 4 * number, 40, 40 + 4 * number)  # top, left, bottom, right
        ImageDraw.Draw(picture).rectangle((box[1], box[0], box[3] - 1, box[2] - 1), fill="white")
        path = f"images/{number}.png"
        picture.save(root / path)
        scenes.append(
            {"image": path, "background": colour, "objects": [{"name": "cup", "box": box}]}
        )
        questions = [
            ("name", "What is it?", "cup"),
            ("colour", "Which colour is the background?", colour),
            ("presence", "Is there a dog?", "no"),
            ("presence", "Is there a cup in the picture?", "yes"),
        ]
        for index, (kind, question, answer) in enumerate(questions):
            rows.append(row(f"{number}-{index}", path, question, answer, kind))
    write_lines(root / "train.jsonl", rows)
    write_lines(root / "train.scenes.jsonl", scenes)
    return root


def faulty_rows(root):
    """Seven rows and their pictures: picture 3 is broken, rows 5 and 6 are too long for 150."""
    rows = []
    for number in range(7):
        colour = (40 * number % 256, 30, 200 - 20 * number)
        Image.new("RGB", (64, 64), colour).save(root / f"{number}.png")
        rows.append(row(str(number), f"{number}.png", "What is it?", "cup"))
    (root / "3.png").write_bytes((root / "3.png").read_bytes()[:60])
    rows[5]["messages"] += row("", "x", "And now?", "cup " * 100)["messages"]
    rows[5]["messages"][2]["content"] = [{"type": "text", "text": "And now?"}]
    rows[6]["messages"][1]["content"][0]["text"] = "cup " * 100
    return rows


def row(name, path, question, answer, kind="name"):
    return {
        "id": name,
        "kind": kind,
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image", "path": path}, {"type": "text", "text": question}],
            },
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ],
    }


def write_lines(path: Path, rows) -> None:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in rows), encoding="utf-8")
