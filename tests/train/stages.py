"""Two short stages and a run of them, for tests."""

from vistoken.train.config import parse_config

ALIGN = {
    "name": "align",
    "objective": "name-alignment",
    "groups": {"connector": {"train": "full", "lr": 5e-3}},
    "steps": 4,
    "images_per_step": 2,
    "log_every": 2,
    "retrieval_every": 2,
}
JOINT = {
    "name": "joint",
    "needs": "align",
    "groups": {
        "spatial": {"train": "full", "lr": 1e-3},
        "language": {"train": "lora", "lr": 5e-3, "lora": {"r": 4, "alpha": 8, "dropout": 0.1}},
    },
    "steps": 6,
    "save_every": 2,
    "log_every": 1,
}


def configuration(data, output, /, stages=(ALIGN, JOINT), **fields):
    return parse_config(
        {
            "recipe": "pico",
            "data": [str(data / "train.jsonl")],
            "output": str(output),
            "cache": str(output.parent / "cache"),
            "precision": "float32",
            "stages": list(stages),
            **fields,
        }
    )
