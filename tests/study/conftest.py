"""A study of pico: two arms, two seeds, a few steps, on three drawn pictures."""

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

STAGE = {
    "name": "joint",
    "objective": "next-token",
    "groups": {
        "connector": {"train": "full", "lr": 1e-3},
        "spatial": {"train": "full", "lr": 1e-3},
        "language": {"train": "full", "lr": 1e-3},
    },
    "steps": 4,
    "images_per_step": 1,
    "save_every": 2,
}
FIRST = {
    "name": "first",
    "objective": "next-token",
    "groups": {"connector": {"train": "full", "lr": 1e-2}},
    "steps": 2,
    "save_every": 2,
}
COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 160, 30)}


def tiny_study() -> dict:
    return {
        "name": "tiny",
        "summary": "Does it run?",
        "baseline": "mlp",
        "seeds": [0, 1],
        "sizes": {
            "pico": {
                "recipe": "pico",
                "set": {"train": {"stages": [FIRST, {**STAGE, "needs": "first"}]}},
            },
        },
        "arms": {
            "mlp": {
                "set": {
                    "connector.0.options": {"spatial_tokens": "none"},
                    "train.stages.joint.groups.spatial.train": "frozen",
                }
            },
            "free-tokens": {
                "set": {
                    "connector.llava-sp.options": {"spatial_tokens": "none"},
                    "connector.1": "free-tokens",
                }
            },
        },
        "data": {"tasks": ["val"], "kinds": ["colour"]},
        "asking": {"groups": {"seeing": ["colour"]}},
        "shared": ["first"],
        "latency_rounds": 3,
    }


@pytest.fixture
def study_file(tmp_path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_study(), sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture
def splits(tmp_path) -> Path:
    """A folder with ``train.jsonl`` and ``val.jsonl``."""
    root = tmp_path / "splits"
    (root / "images").mkdir(parents=True)
    rows = []
    for colour, value in COLOURS.items():
        Image.new("RGB", (48, 48), value).save(root / "images" / f"{colour}.png")
        for kind, question, answer in (
            ("colour", "Which colour is it?", colour),
            ("colour", "What is the colour?", colour),
            ("caption", "Describe it.", f"a {colour} square"),
        ):
            image = {"type": "image", "path": f"images/{colour}.png"}
            user = {"role": "user", "content": [image, {"type": "text", "text": question}]}
            messages = [user, {"role": "assistant", "content": answer}]
            rows.append({"id": f"{colour}-{len(rows)}", "kind": kind, "messages": messages})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    for split in ("train", "val"):
        (root / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return root
