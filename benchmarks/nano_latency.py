"""nano's time to the first token and tokens per second, beside a `transformers` Llava twin.

    python benchmarks/nano_latency.py [--rounds 15] [--threads 2] [--untrained] [--out FILE]

The twin is `LlavaForConditionalGeneration` with nano's own DINOv2 tower and language model and the
two-layer projector: one tower instead of two, 576 visual tokens instead of nano's 70. Both get the
same picture and question through their processors and write the same number of tokens greedily.
The first token's time counts preprocessing. Goal: the interval of nano / twin reaches 1.0.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from nano_accuracy import CHECKPOINT
from paired import Times, compare, machine, take_turns, write
from PIL import Image
from transformers import (
    BitImageProcessorPil,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.generation.streamers import BaseStreamer
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

import vistoken
from vistoken.models.build import build
from vistoken.models.modeling import VistokenForConditionalGeneration
from vistoken.models.processing import VistokenProcessor
from vistoken.models.recipe import load_recipe

PICTURE = CHECKPOINT.parent / "demo_scene.png"
QUESTION = "What do you see in the image? Answer with one word."
NEW_TOKENS = 32
RESULT = Path(__file__).parent / "results" / "nano_latency.json"


class Stamps(BaseStreamer):
    """Notes when the prompt and every token pass."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing to do."""


def make_twin(
    model: VistokenForConditionalGeneration, processor: VistokenProcessor
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A stock Llava on the model's own DINOv2 and language model; its projector is random."""
    tower = model.model.vision_tower.get_submodule("dinov2")
    size, patch = model.model.plan.spec.towers[0].size, tower.config.patch_size
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=model.config.text_config,
        image_token_index=model.config.image_token_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=(size[0] // tower.config.patch_size)
        * (size[1] // tower.config.patch_size),
    )
    with torch.device("meta"):
        twin = LlavaForConditionalGeneration(config)
    twin.model.vision_tower = tower
    twin.model.language_model, twin.lm_head = model.model.language_model, model.lm_head
    twin.model.multi_modal_projector = LlavaMultiModalProjector(config).to(model.dtype)
    twin.generation_config = model.generation_config
    spec = processor.image_processor.spec.towers[0]
    pixels = BitImageProcessorPil(
        size={"height": size[0], "width": size[1]},
        do_center_crop=False,
        image_mean=list(spec.mean),
        image_std=list(spec.std),
    )
    reader = LlavaProcessor(
        pixels,
        processor.tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        chat_template=processor.chat_template,
        image_token=processor.image_token,
        num_additional_image_tokens=1,  # the class token, which "default" drops again
    )
    return twin.eval(), reader


def prepare(processor: Any, picture: Image.Image) -> Any:
    """Picture and question as model inputs."""
    text: dict[str, Any] = {"type": "text", "text": QUESTION}
    messages = [{"role": "user", "content": [{"type": "image"}, text]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    return processor(images=picture, text=prompt, return_tensors="pt")


@torch.inference_mode()
def run_once(model: Any, processor: Any, picture: Image.Image) -> Times:
    """Prepare and generate; seconds of each phase."""
    stamps = Stamps()
    started = time.perf_counter()
    inputs = prepare(processor, picture)
    prepared = time.perf_counter()
    model.generate(
        **inputs,
        do_sample=False,
        min_new_tokens=NEW_TOKENS,
        max_new_tokens=NEW_TOKENS,
        streamer=stamps,
    )
    _, first, *_, last = stamps.times
    return {
        "prepare": prepared - started,
        "first_token": first - started,
        "decode": last - first,
        "answer": last - started,
    }


def token_counts(processor: Any, image_token_id: int, picture: Image.Image) -> dict[str, int]:
    """Visual and text tokens of the prompt."""
    ids = prepare(processor, picture)["input_ids"]
    visual = int((ids == image_token_id).sum())
    return {"visual": visual, "text": ids.numel() - visual}


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--untrained", action="store_true", help="build the recipe instead")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.untrained:
        model, processor = build(load_recipe("nano"), getattr(torch, options.dtype))
    else:
        model, processor = vistoken.load(options.checkpoint, device="cpu", dtype=options.dtype)
    twin, twin_processor = make_twin(model, processor)
    picture = Image.open(PICTURE).convert("RGB")
    pair = {"nano": (model, processor), "twin": (twin, twin_processor)}
    measured = take_turns(
        {name: partial(run_once, *both, picture) for name, both in pair.items()},
        rounds=options.rounds,
        warmup=1,
    )
    rows = {p: compare(measured["nano"][p], base) for p, base in measured["twin"].items()}
    decode = rows["decode"]
    result = {
        "what": "nano (LoRA merged) / transformers Llava with DINOv2, mlp and the same language "
        "model; ratios of times, below 1 is faster",
        "goal": "the interval of the ratio reaches 1.0",
        "weights": "untrained" if options.untrained else "trained",
        "towers": {"nano": [t.name for t in model.model.plan.spec.towers], "twin": ["dinov2"]},
        "prompt_tokens": {
            name: token_counts(reader, model.config.image_token_id, picture)
            for name, (_, reader) in pair.items()
        },
        "new_tokens": NEW_TOKENS,
        "dtype": options.dtype,
        "rounds": options.rounds,
        "threads": options.threads,
        "nano_to_twin": rows,
        "tokens_per_s": {
            "nano": round(1e3 * (NEW_TOKENS - 1) / decode["ms"], 2),
            "twin": round(1e3 * (NEW_TOKENS - 1) / decode["base_ms"], 2),
        },
        "machine": machine(),
    }
    write(options.out, result)
    for phase, row in rows.items():
        times = f"{row['ms']:9.1f} ms {row['base_ms']:9.1f} ms"
        print(f"{phase:12} {times}  {row['ratio']:.4f}  [{row['low']:.4f}, {row['high']:.4f}]")
    print("tokens/s", result["tokens_per_s"], "prompt", result["prompt_tokens"])


if __name__ == "__main__":
    main()
