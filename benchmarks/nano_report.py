"""Everything that nano's model card reports, measured on one checkpoint in about ten minutes.

    python benchmarks/nano_report.py --data SCENES --photographs DIR --work DIR [--cache DIR]

SCENES is the folder of vistoken-scenes 1 that nano was trained on, DIR one made with
`vistoken data make DIR --set vistoken-scenes-v1 --scenes photographs=15`. Measured are: exact
answers on every test split beside grey pictures and the answer prior; perplexity of the language
model on this repository's own pages beside the model it was made from; answers that never end;
absent things; answers in one word. Each part is kept in --work when it is done, so a stopped report
goes on there.
The result goes into benchmarks/results, its tables into the model card (`nano_tables.py`).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nano_answers
import nano_language
import torch
from nano_accuracy import CHECKPOINT, GROUPS, digests
from nano_tables import write_tables
from paired import machine, write

import vistoken
from vistoken.eval.records import Results
from vistoken.eval.run import EvalOptions, evaluate
from vistoken.eval.tasks import Task, read_answers, read_tasks
from vistoken.train.cache import FeatureCache, fast_compute
from vistoken.train.encoders import CachedEncoder, Encoder, PixelEncoder

RESULT = Path(__file__).parent / "results" / "nano_report.json"
PICTURES = {"val": 100, "style": 50, "classes": 40, "photographs": 15}
GREY = {"val": 30, "style": 15, "classes": 15, "photographs": 15}
"""Pictures of each split, and how many of them are also asked about a grey one: about 1,750 answers
and 600 more, six minutes of two cores at six or seven a second."""
RELATIONS = ("relation", "relation-check")
ALL_GROUPS = {
    **GROUPS,
    "relations": RELATIONS,
    "captions": ("caption-1", "caption-2", "caption-3"),
}


def main() -> None:
    """Measure what is not measured yet, then write the result and the card's tables."""
    options = parse()
    torch.set_num_threads(options.threads)
    provenance = digests(options.checkpoint, options.data)  # fails before the work, not after
    model, processor = vistoken.load(options.checkpoint, dtype=options.dtype)
    work, val = options.work, options.data / "val.jsonl"
    encode: Encoder = PixelEncoder(processor)
    if options.cache is not None:
        cache = FeatureCache(options.cache, model, processor, fast_compute())
        encode = CachedEncoder(cache)
    work.mkdir(parents=True, exist_ok=True)
    timings: dict[str, float] = {}

    def part(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        return kept(work / f"{name}.json", make, timings)

    chosen = {s: n for s, n in pictures(options.pictures).items() if n}
    splits = {
        split: part(split, lambda s=split, n=count: ask(model, processor, s, n, options))
        for split, count in chosen.items()
    }
    result = {
        "what": "share of questions answered exactly, beside the same model shown a uniform grey "
        "picture and the most common training answer of the kind; perplexity of the language "
        "model beside the untouched one; behaviour of free answers",
        "interval": "95 %, bootstrap over pictures (perplexity: over windows)",
        **provenance,
        "accuracy": {split: found["table"] for split, found in splits.items()},
        "settings": {split: found["settings"] for split, found in splits.items()},
        "absent": {
            split: nano_answers.absent(Results(work / "answers" / split).records())
            for split in splits
            if split != "photographs"
        },
        "language": part(
            "language", lambda: nano_language.perplexity(model, processor, options.tokens)
        ),
        "chat": part("chat", lambda: nano_language.plain_chat(model, processor)),
        "picture_chat": part(
            "picture_chat",
            lambda: nano_answers.picture_chat(model, processor, encode, val),
        ),
        "one_word": part(
            "one_word",
            lambda: nano_answers.one_word(model, processor, encode, val),
        ),
        "seconds": timings,
        "threads": options.threads,
        "machine": machine(),
    }
    write(options.out, result)
    print(write_tables(options.card or options.checkpoint / "README.md", result))


def parse() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--data", type=Path, required=True, help="folder of vistoken-scenes 1")
    parser.add_argument("--photographs", type=Path, help="folder with photographs.jsonl")
    parser.add_argument("--pictures", nargs="*", default=[], metavar="SPLIT=N", help="other counts")
    parser.add_argument("--tokens", type=int, default=20_000, help="of held-out text")
    parser.add_argument("--cache", type=Path, help="feature cache of training")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--work", type=Path, required=True, help="what is done is kept here")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--card", type=Path, help="default: README.md of the checkpoint")
    return parser.parse_args()


def pictures(changes: list[str]) -> dict[str, int]:
    """How many pictures of each split."""
    counts = dict(PICTURES)
    for change in changes:
        split, equals, count = change.partition("=")
        if split not in counts or not equals or not count.isdigit():
            raise SystemExit(f"--pictures {change}: write SPLIT=N with one of {', '.join(counts)}")
        counts[split] = int(count)
    return counts


def ask(
    model: Any, processor: Any, split: str, count: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Ask the questions of one split; photographs are encoded, scenes come from the cache."""
    own = split == "photographs"
    if own and options.photographs is None:
        raise SystemExit("--photographs DIR is missing; --pictures photographs=0 leaves them out")
    folder: Path = options.photographs if own else options.data
    read = read_tasks([folder / f"{split}.jsonl"], limit=count)
    summary = evaluate(
        model,
        processor,
        [asked_in_training(task, options.data / "train.jsonl") for task in read],
        options.work / "answers" / split,
        EvalOptions(
            grey=True,
            grey_limit=min(count, GREY[split]),
            prior=options.data / "train.jsonl",
            limit=count,
            cache=None if own else options.cache,
            groups=ALL_GROUPS,
        ),
        options.checkpoint.name,
        lambda what, done, total: print(f"{what}: {done} of {total}", flush=True),
    )
    return {"table": summary["tasks"][split], "settings": summary["settings"]}


def asked_in_training(task: Task, train: Path) -> Task:
    """A task without the kinds of question that training never asked: they have no answer prior."""
    kinds = {kind for kind, _ in read_answers(train)}
    groups = (tuple(q for q in group if q.kind in kinds) for group in task.groups)
    return replace(task, groups=tuple(group for group in groups if group))


def kept(
    path: Path, make: Callable[[], dict[str, Any]], timings: dict[str, float]
) -> dict[str, Any]:
    """What an earlier call wrote, or what is made now and written."""
    if not path.is_file():
        print(f"== {path.stem}", flush=True)
        begun = time.perf_counter()
        made = make()
        write(path, {"seconds": round(time.perf_counter() - begun, 1), "found": made})
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    timings[path.stem] = values["seconds"]
    found: dict[str, Any] = values["found"]
    return found


if __name__ == "__main__":
    main()
