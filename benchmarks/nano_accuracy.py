"""What nano answers rightly: on scenes, on a grey picture instead, and beside the answer prior.

    python benchmarks/nano_accuracy.py --data SCENES [--scenes 100] [--cache DIR] [--checkpoint DIR]

SCENES is a folder made by `vistoken data make`: val holds new compositions of known drawings, style
drawings in a style that training never saw. The work is done by `vistoken eval`; what is measured
here goes into benchmarks/results and the model card.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from card import write_table
from paired import machine, sha256, write

import vistoken
from vistoken.eval.run import EvalOptions, evaluate
from vistoken.eval.scoring import answer_prior
from vistoken.eval.tasks import read_answers, read_tasks

ROOT = Path(__file__).parent.parent
CHECKPOINT = ROOT / "src/vistoken/assets/nano"
RESULT = Path(__file__).parent / "results" / "nano_accuracy.json"
GROUPS = {"naming": ("name1", "nameN")}
TARGET_POINTS = 20


def digests(checkpoint: Path, data: Path) -> dict[str, Any]:
    """What exactly was measured: the checkpoint's files and the data's recipe."""
    kept = [p for p in sorted(checkpoint.rglob("*")) if p.suffix in (".safetensors", ".json")]
    return {
        "checkpoint": {str(path.relative_to(checkpoint)): sha256(path) for path in kept},
        "data": {
            "make.json": sha256(data / "make.json"),
            "seed": json.loads((data / "make.json").read_text(encoding="utf-8"))["seed"],
        },
    }


def main() -> None:
    """Measure, print, write the result and the model card's table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--data", type=Path, required=True, help="folder of `vistoken data make`")
    parser.add_argument("--splits", nargs="+", default=["val", "style"])
    parser.add_argument("--scenes", type=int, default=100, help="pictures of each split")
    parser.add_argument("--cache", type=Path, help="feature cache of training")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--answers", type=Path, help="keep the answers here, and go on with them")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--card", type=Path, help="default: README.md of the checkpoint")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    provenance = digests(options.checkpoint, options.data)  # fails before the work, not after
    train = options.data / "train.jsonl"
    files = [options.data / f"{split}.jsonl" for split in options.splits]
    tasks = read_tasks(files, limit=options.scenes)
    asking = EvalOptions(
        grey=True, prior=train, limit=options.scenes, cache=options.cache, groups=GROUPS
    )
    model, processor = vistoken.load(options.checkpoint, dtype=options.dtype)
    with tempfile.TemporaryDirectory() as scratch:
        summary = evaluate(
            model,
            processor,
            tasks,
            options.answers or Path(scratch) / "answers",
            asking,
            options.checkpoint.name,
            lambda what, done, total: print(f"{what}: {done} of {total}", flush=True),
        )
    result = {
        "what": "share of questions answered exactly: the model, the model shown a uniform grey "
        "picture of the same size, and the most common training answer of the kind",
        "interval": summary["interval"],
        "target": f"naming on val: model minus grey at least {TARGET_POINTS / 100}",
        "settings": summary["settings"],
        "threads": options.threads,
        **provenance,
        "prior": answer_prior(read_answers(train)),
        "splits": summary["tasks"],
        "machine": machine(),
    }
    write(options.out, result)
    print(write_table(options.card or options.checkpoint / "README.md", summary["tasks"]))


if __name__ == "__main__":
    main()
