"""Training speed: this library against transformers' Trainer with LlavaForConditionalGeneration.

    python benchmarks/train_speed.py [--size small] [--rounds 5] [--out FILE]

Both train the same weights (a small LLaVA with random weights, exported to plain Llava for the
stock side) for one pass over the same pictures, each with several questions of very different
length, in the same number of optimiser steps. The vision tower is frozen. Both are supervised on
the same tokens, which is checked, so a ratio of times is a ratio of training tokens per second.
Variants take turns; the ratio is over pairs, in seconds of a processor (one thread, so that other
programs do not count) and on the clock, from the first step to the last: what a Trainer does once
before them is the same for all, and would be nothing in a real run.

``stock`` pads the rows of a batch to the longest; ``stock-grouped`` also puts rows of like length
together. Both get their rows already tokenised. ``rows`` is ours with one question a sample, packed
into rows; ``ours`` also puts all questions about a picture behind it; ``cached`` also reads the
tower's features from the cache, filled before.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from paired import Times, compare, machine, take_turns, write
from PIL import Image
from transformers import (
    AutoProcessor,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_utils import SaveStrategy

from vistoken.convert.export_llava_hf import export_llava_hf
from vistoken.models.build import build, load_tokenizer
from vistoken.models.checkpoint import save_full
from vistoken.models.recipe import load_recipe
from vistoken.train.arguments import training_arguments
from vistoken.train.cache import FeatureCache
from vistoken.train.groups import apply_groups
from vistoken.train.labelling import ExactLabels
from vistoken.train.packing import IGNORE
from vistoken.train.rows import RowMaker
from vistoken.train.samples import (
    CachedEncoder,
    Encoder,
    Example,
    PixelEncoder,
    QuestionCollator,
    group_examples,
    read_examples,
)
from vistoken.train.settings import StageConfig
from vistoken.train.trainer import VistokenTrainer

RESULT = Path(__file__).parent / "results" / "train_speed.json"
VARIANTS = ("stock", "stock-grouped", "rows", "ours", "cached")
SIZES = {
    "tiny": {"width": 256, "layers": 4, "vocabulary": 4096, "tower": 128, "image": 168},
    "small": {"width": 576, "layers": 6, "vocabulary": 49_152, "tower": 384, "image": 168},
}


def recipe_file(folder: Path, size: str) -> Path:
    """A LLaVA with random weights, and a tokenizer with as many entries as it has rows."""
    chosen = SIZES[size]
    tokenizer = load_tokenizer("assets:pico-tokenizer")
    tokenizer.add_tokens([f"<extra{n}>" for n in range(chosen["vocabulary"] - len(tokenizer))])
    tokenizer.save_pretrained(folder / "tokenizer")
    recipe = {
        "name": f"speed-{size}",
        "summary": "random weights, for timing",
        "template": "chatml",
        "views": "pad",
        "towers": [
            {
                "name": "clip",
                "source": "random",
                "config": {
                    "model_type": "clip_vision_model",
                    "hidden_size": chosen["tower"],
                    "intermediate_size": 4 * chosen["tower"],
                    "num_hidden_layers": 2 * chosen["layers"],
                    "num_attention_heads": 4,
                    "image_size": chosen["image"],
                    "patch_size": 14,
                },
                "feature_layer": -2,
                "size": [chosen["image"], chosen["image"]],
                "mean": [0.48145466, 0.4578275, 0.40821073],
                "std": [0.26862954, 0.26130258, 0.27577711],
            }
        ],
        "connector": ["mlp"],
        "layout": "plain",
        "language_model": {
            "source": "random",
            "tokenizer": str(folder / "tokenizer"),
            "config": {
                "model_type": "llama",
                "hidden_size": chosen["width"],
                "intermediate_size": 3 * chosen["width"],
                "num_hidden_layers": chosen["layers"],
                "num_attention_heads": 4,
                "num_key_value_heads": 4,
                "vocab_size": chosen["vocabulary"],
                "max_position_embeddings": 4096,
                "bos_token_id": 1,
                "eos_token_id": 2,
                "pad_token_id": 0,
                "tie_word_embeddings": False,
            },
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def make_data(folder: Path, pictures: int, questions: int, side: int) -> Path:
    """Pictures with 1 to 2 x ``questions`` - 1 questions each; lengths differ twenty-fold."""
    chooser = random.Random(0)
    noise = np.random.default_rng(0)
    lines = []
    for number in range(pictures):
        pixels = noise.integers(0, 256, (side, side * 3 // 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        for index in range(1 + number % (2 * questions - 1)):
            length = round(2 * 20 ** chooser.random())
            asked = " ".join(chooser.choices(["what", "is", "in", "it"], k=length))
            said = " ".join(chooser.choices(["a", "red", "cup", "on"], k=length))
            content = [{"type": "image", "path": f"{number}.png"}, {"type": "text", "text": asked}]
            messages = [
                {"role": "user", "content": content},
                {"role": "assistant", "content": [{"type": "text", "text": said}]},
            ]
            lines.append(json.dumps({"id": f"{number}-{index}", "messages": messages}))
    path = folder / "data.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


class Timed:
    """A collator that adds up how long it takes, and the positions and targets that it makes."""

    def __init__(self, collate: Callable[[Sequence[Any]], dict[str, Any]]) -> None:
        self.collate = collate
        self.seconds = 0.0
        self.positions = self.targets = 0

    def __call__(self, items: Sequence[Any]) -> dict[str, Any]:
        start = time.process_time()
        batch = self.collate(items)
        self.seconds += time.process_time() - start
        ids = batch["input_ids"] if "input_ids" in batch else batch["batch"].input_ids
        self.positions += ids.numel()
        self.targets += int((batch["labels"] != IGNORE).sum())
        return batch


class StepTime(TrainerCallback):
    """Seconds from the first step to the last."""

    def __init__(self) -> None:
        self.cpu = self.clock = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start."""
        self.cpu, self.clock = time.process_time(), time.perf_counter()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop."""
        self.cpu = time.process_time() - self.cpu
        self.clock = time.perf_counter() - self.clock


class StockCollator:
    """Tokenised rows padded to the longest, pixels by the stock processor."""

    def __init__(self, processor: Any) -> None:
        self.images = processor.image_processor

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        length = max(len(row["input_ids"]) for row in rows)
        ids = torch.zeros(len(rows), length, dtype=torch.int64)
        labels = torch.full_like(ids, IGNORE)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            n = len(row["input_ids"])
            ids[number, :n] = torch.tensor(row["input_ids"])
            labels[number, :n] = torch.tensor(row["labels"])
            mask[number, :n] = 1
        pictures = [Image.open(row["image"]).convert("RGB") for row in rows]
        pixels = self.images(pictures, return_tensors="pt")["pixel_values"]
        return {"input_ids": ids, "labels": labels, "attention_mask": mask, "pixel_values": pixels}


def stock_rows(examples: Sequence[Example], make: RowMaker, count: int) -> list[dict[str, Any]]:
    """The same rows, tokenised, in the stock Trainer's words."""
    rows = []
    for example in examples:
        made = make(example, [count] * len(example.images), keep_images=True)
        if made is not None:
            row = {"input_ids": made.row.input_ids, "labels": made.row.labels}
            rows.append({**row, "image": str(example.images[0])})
    return rows


def quiet(arguments: TrainingArguments, **changed: Any) -> TrainingArguments:
    """Neither checkpoints nor logs while the clock runs."""
    arguments = copy.copy(arguments)
    for name, value in {
        "save_strategy": SaveStrategy.NO,
        "logging_steps": 10**9,
        **changed,
    }.items():
        setattr(arguments, name, value)
    return arguments


def main() -> None:
    """Run the variants in turn and write ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--questions", type=int, default=4, help="of a picture, on average")
    parser.add_argument("--batch", type=int, default=2, help="pictures of a step")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        result = measure(Path(name), options)
    print(json.dumps(result, indent=2))
    write(options.out, result)


def stage_of(batch: int, questions: int) -> StageConfig:
    """One pass over the data; the tower stays frozen."""
    return StageConfig.model_validate(
        {
            "name": "speed",
            "groups": {"connector": {"train": "full"}, "language": {"train": "full"}},
            "epochs": 1,
            "images_per_step": batch,
            "questions_per_image": questions,
            "pack_samples": True,
        }
    )


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Ratios of training tokens per second."""
    from transformers import LlavaForConditionalGeneration

    model, processor = build(load_recipe(str(recipe_file(folder, options.size))))
    save_full(model, processor, folder / "full")
    export_llava_hf(folder / "full", folder / "stock")
    stock = LlavaForConditionalGeneration.from_pretrained(folder / "stock", dtype=torch.float32)
    stock.model.vision_tower.requires_grad_(False)
    side = SIZES[options.size]["image"]
    data = make_data(folder, options.pictures, options.questions, 2 * side)
    examples = read_examples([data], None)
    template = str(processor.chat_template)
    make = RowMaker(ExactLabels(processor, template), 4096)
    rows = stock_rows(list(examples), make, (side // 14) ** 2)
    together = options.batch * options.questions  # questions of a step
    pixels = PixelEncoder(processor)
    cached = CachedEncoder(FeatureCache(folder / "cache", model, processor))
    if "cached" in options.variants:
        cached.cache.fill(list(dict.fromkeys(row.images[0] for row in examples)))
    seen: dict[str, dict[str, float]] = {}

    def run_stock(grouped: bool, arguments: TrainingArguments) -> tuple[Trainer, Timed]:
        collate = Timed(StockCollator(AutoProcessor.from_pretrained(folder / "stock")))
        changed = quiet(
            arguments,
            train_sampling_strategy="group_by_length" if grouped else "random",
            length_column_name="length",
        )
        trainer = Trainer(model=stock, args=changed, train_dataset=rows, data_collator=collate)
        trainer.remove_callback(PrinterCallback)
        return trainer, collate

    def run_ours(encode: Encoder, shared: bool) -> tuple[Trainer, Timed]:
        stage = stage_of(options.batch if shared else together, 100 if shared else 1)
        apply_groups(model, stage)
        groups = group_examples(examples, stage.questions_per_image)
        collate = Timed(QuestionCollator(processor, template, encode, 4096, pack_samples=True))
        arguments = training_arguments(stage, folder / "run", 0, bf16=False, use_cpu=True)
        log = folder / "metrics.jsonl"
        return VistokenTrainer(model, quiet(arguments), stage, groups, collate, log), collate

    def turn(variant: str) -> Callable[[], Times]:
        def run() -> Times:
            if variant.startswith("stock"):
                plain = training_arguments(
                    stage_of(together, 1), folder / "run", 0, bf16=False, use_cpu=True
                )
                trainer, collate = run_stock(variant == "stock-grouped", plain)
            else:
                encode: Encoder = cached if variant == "cached" else pixels
                trainer, collate = run_ours(encode, variant != "rows")
            steps = StepTime()
            trainer.add_callback(steps)
            trainer.train()
            cpu, clock = steps.cpu, steps.clock
            seen[variant] = {
                "supervised_tokens": collate.targets,
                "positions": collate.positions,
                "steps": trainer.state.global_step,
                "data_loading_share": round(collate.seconds / cpu, 3),
            }
            return {"cpu": cpu, "clock": clock}

        return run

    times = take_turns(
        {variant: turn(variant) for variant in options.variants}, rounds=options.rounds, warmup=1
    )
    if len({counts["supervised_tokens"] for counts in seen.values()}) != 1:
        raise SystemExit(f"the variants were not supervised on the same tokens: {seen}")
    return {
        "size": {"name": options.size, **SIZES[options.size]},
        "pictures": options.pictures,
        "questions": len(rows),
        "row_tokens": [min(map(_length, rows)), max(map(_length, rows))],
        "rounds": options.rounds,
        "threads": options.threads,
        "variants": seen,
        "speedup": {
            f"{variant} over {base}": {
                phase: compare(times[base][phase], times[variant][phase])
                for phase in ("cpu", "clock")
            }
            for variant in options.variants
            for base in options.variants
            if base.startswith("stock") and not variant.startswith("stock")
        },
        "machine": machine(),
    }


def _length(row: dict[str, Any]) -> int:
    return len(row["input_ids"])


if __name__ == "__main__":
    main()
