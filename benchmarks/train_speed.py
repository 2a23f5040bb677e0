"""Training speed: this library against transformers' Trainer with LlavaForConditionalGeneration.

    python benchmarks/train_speed.py --rounds 3 --out benchmarks/results/train-speed.json

Both train the same weights (a small LLaVA with random weights, exported to plain Llava for the
stock side) on the same mixed-length conversations in batches of the same size, the vision tower
frozen. They take turns; the ratio is over pairs. Tokens are those that are not padding.

Variants: ``stock`` pads and computes all logits; ``ours`` packs samples into rows and computes
logits at supervised positions; ``cached`` also reads the tower's features from the cache.
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
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from vistoken.convert.export_llava_hf import export_llava_hf
from vistoken.models.build import build, load_tokenizer
from vistoken.models.checkpoint import save_full
from vistoken.models.recipe import load_recipe
from vistoken.train.arguments import training_arguments
from vistoken.train.cache import FeatureCache
from vistoken.train.groups import apply_groups
from vistoken.train.packing import IGNORE
from vistoken.train.rows import RowMaker
from vistoken.train.samples import (
    CachedEncoder,
    Encoder,
    PixelEncoder,
    QuestionCollator,
    QuestionGroup,
    group_examples,
    read_examples,
)
from vistoken.train.settings import StageConfig
from vistoken.train.trainer import VistokenTrainer

SIZES = {
    "tiny": {"width": 64, "layers": 2, "vocabulary": 2048, "tower": 32, "image": 56},
    "small": {"width": 384, "layers": 6, "vocabulary": 32_000, "tower": 192, "image": 168},
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


def make_data(folder: Path, rows: int, side: int) -> Path:
    """Conversations whose lengths differ twenty-fold, three quarters of them with a picture."""
    chooser = random.Random(0)
    noise = np.random.default_rng(0)
    lines = []
    for number in range(rows):
        content: list[dict[str, str]] = []
        if number % 4:
            name = f"{number}.png"
            pixels = noise.integers(0, 256, (side, side * 3 // 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name)
            content.append({"type": "image", "path": name})
        words = round(4 * 20 ** chooser.random())
        content.append({"type": "text", "text": "what is in the picture " * (words // 5 + 1)})
        answer = "a red cup " * (words // 3 + 1)
        messages = [
            {"role": "user", "content": content},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ]
        lines.append(json.dumps({"id": str(number), "messages": messages}))
    path = folder / "data.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


class Timed:
    """A collator that adds up how long it takes and how many tokens it makes."""

    def __init__(self, collate: Callable[[Sequence[Any]], dict[str, Any]]) -> None:
        self.collate = collate
        self.seconds = 0.0
        self.tokens = 0

    def __call__(self, items: Sequence[Any]) -> dict[str, Any]:
        start = time.perf_counter()
        batch = self.collate(items)
        self.seconds += time.perf_counter() - start
        mask = batch.get("attention_mask")
        self.tokens += batch["batch"].tokens if mask is None else int(mask.sum())
        return batch


class StockCollator:
    """Rows padded to the longest, pixels as the stock model takes them."""

    def __init__(self, make: RowMaker, encode: Encoder, counts: int) -> None:
        self.make, self.encode, self.counts = make, encode, counts

    def __call__(self, groups: Sequence[QuestionGroup]) -> dict[str, Any]:
        rows = []
        for group in groups:
            for example in group.examples:
                made = self.make(example, [self.counts] * len(example.images), keep_images=True)
                if made is not None:
                    rows.append(made.row)
        length = max(len(row.input_ids) for row in rows)
        ids = torch.zeros(len(rows), length, dtype=torch.int64)
        labels = torch.full_like(ids, IGNORE)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            n = len(row.input_ids)
            ids[number, :n] = torch.tensor(row.input_ids)
            labels[number, :n] = torch.tensor(row.labels)
            mask[number, :n] = 1
        batch: dict[str, Any] = {"input_ids": ids, "labels": labels, "attention_mask": mask}
        images = [image for group in groups for image in group.images]
        if images:
            pixels = self.encode(images).pixel_values
            batch["pixel_values"] = pixels if isinstance(pixels, Tensor) else torch.stack(pixels)
        return batch


def quiet(arguments: TrainingArguments) -> TrainingArguments:
    """Neither checkpoints nor logs while the clock runs."""
    arguments.save_strategy = SaveStrategy.NO
    arguments.logging_steps = 10**9
    return arguments


def main() -> None:
    """Run the variants in turn and write ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        result = measure(Path(name), options)
    print(json.dumps(result, indent=2))
    if options.out:
        write(options.out, result)


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Ratios of tokens per second."""
    from transformers import LlavaForConditionalGeneration

    model, processor = build(load_recipe(str(recipe_file(folder, options.size))))
    save_full(model, processor, folder / "full")
    export_llava_hf(folder / "full", folder / "stock")
    stock = LlavaForConditionalGeneration.from_pretrained(folder / "stock", dtype=torch.float32)
    stock.model.vision_tower.requires_grad_(False)
    stage = StageConfig.model_validate(
        {
            "name": "speed",
            "groups": {"connector": {"train": "full"}, "language": {"train": "full"}},
            "steps": options.steps,
            "images_per_step": options.batch,
            "questions_per_image": 1,
            "pack_samples": True,
        }
    )
    apply_groups(model, stage)
    side = SIZES[options.size]["image"] * 2
    data = make_data(folder, options.batch * options.steps, side)
    groups = group_examples(read_examples([data], None), 1)
    template = str(processor.chat_template)
    arguments = training_arguments(stage, folder / "run", 0, bf16=False, use_cpu=True)
    pixels = PixelEncoder(processor)
    cached = CachedEncoder(FeatureCache(folder / "cache", model, processor))
    cached.cache.fill([image for group in groups for image in group.images])
    side_tokens = (SIZES[options.size]["image"] // 14) ** 2
    loading: dict[str, list[float]] = {}

    def turn(variant: str) -> Callable[[], Times]:
        def run() -> Times:
            make = RowMaker(processor, template, stage.max_length)
            if variant == "stock":
                collate = Timed(StockCollator(make, pixels, side_tokens))
                trainer = stock_trainer(stock, copy.copy(arguments), groups, collate)
            else:
                encode: Encoder = cached if variant == "cached" else pixels
                ours = QuestionCollator(
                    processor, template, encode, stage.max_length, pack_samples=True
                )
                collate = Timed(ours)
                log = folder / "metrics.jsonl"
                trainer = VistokenTrainer(
                    model, quiet(copy.copy(arguments)), stage, groups, collate, log
                )
            start = time.perf_counter()
            trainer.train()
            seconds = time.perf_counter() - start
            loading.setdefault(variant, []).append(collate.seconds / seconds)
            return {"per_token": seconds / collate.tokens}

        return run

    times = take_turns(
        {variant: turn(variant) for variant in ("stock", "ours", "cached")},
        rounds=options.rounds,
        warmup=1,
    )
    base = times["stock"]["per_token"]
    return {
        "size": options.size,
        "batch": options.batch,
        "steps": options.steps,
        "threads": options.threads,
        "tokens_per_s": {v: round(1 / min(t["per_token"]), 1) for v, t in times.items()},
        "speedup": {
            variant: round(1 / compare(times[variant]["per_token"], base)["ratio"], 3)
            for variant in ("ours", "cached")
        },
        "data_loading_share": {v: round(sorted(s)[len(s) // 2], 3) for v, s in loading.items()},
        "machine": machine(),
    }


def stock_trainer(
    model: Any, arguments: TrainingArguments, groups: Sequence[QuestionGroup], collate: Timed
) -> Trainer:
    """The library's own Trainer with its own loss."""
    trainer = Trainer(
        model=model, args=quiet(arguments), train_dataset=list(groups), data_collator=collate
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


if __name__ == "__main__":
    main()
