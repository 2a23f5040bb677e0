"""Latency and peak memory of the paper's 7B model against LLaVA-1.5's, random weights, one GPU.

    python benchmarks/latency_7b.py [--recipes llava-sp-cropping-7b ...] [--rounds 20]

Time depends on shapes, not on what the weights hold. Both models answer the same prompt of one
picture and 64 text tokens and decode 32 tokens, taking turns in one process; the connector's
models share towers and language model in memory. Budget: ratio <= 1.02.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from paired import Times, compare, machine, take_turns, write

from vistoken.core.errors import MachineError
from vistoken.core.tables import VIEW
from vistoken.models import VistokenForConditionalGeneration
from vistoken.models.recipe import load_recipe

BASE = "llava-1.5-7b"
TEXT_TOKENS, DECODE_STEPS = 64, 32
RESULT = Path(__file__).parent / "results" / "latency_7b.json"


def make_model(
    recipe_name: str, device: torch.device, twin: VistokenForConditionalGeneration | None = None
) -> VistokenForConditionalGeneration:
    """Build a recipe's model with random weights, on towers and language model of its twin."""
    recipe = load_recipe(recipe_name)
    config = recipe.model_config_for()
    with torch.device("meta"):
        model = VistokenForConditionalGeneration(config).to(torch.bfloat16)
    if twin is not None:
        model.model.vision_tower = twin.model.vision_tower
        model.model.language_model = twin.model.language_model
        model.lm_head = twin.lm_head
    model.model.multi_modal_projector.to_empty(device=device)
    model.model.layout.to_empty(device=device)
    if twin is None:
        model.to_empty(device=device)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02)
        for name, buffer in list(model.named_buffers()):
            _fill_buffer(model, name, buffer)
    return model.eval()


def _fill_buffer(model: VistokenForConditionalGeneration, name: str, buffer: torch.Tensor) -> None:
    """Buffers lost on the meta device: positions count up, rotary frequencies are drawn."""
    if buffer.is_floating_point():
        buffer.uniform_(0.01, 1)
    else:
        buffer.copy_(torch.arange(buffer.numel(), device=buffer.device).view_as(buffer))


@torch.inference_mode()
def answer(model: VistokenForConditionalGeneration, device: torch.device) -> Times:
    """Prefill one picture with text and decode; seconds of each phase."""
    spec = model.model.plan.spec
    height, width = spec.towers[0].size
    table = VIEW.make(1, height=height, width=width, bottom=height, right=width)
    visual = len(model.model.plan.arrange(table).order)
    pixels = torch.randn(1, 3, height, width, device=device, dtype=model.dtype)
    ids = torch.randint(1, model.config.image_token_id, (1, visual + TEXT_TOKENS), device=device)
    ids[0, 32 : 32 + visual] = model.config.image_token_id
    _wait(device)
    start = time.perf_counter()
    output = model(input_ids=ids, pixel_values=pixels, view_table=table, logits_to_keep=1)
    _wait(device)
    filled = time.perf_counter()
    for _ in range(DECODE_STEPS):
        token = output.logits[:, -1:].argmax(-1)
        output = model(input_ids=token, past_key_values=output.past_key_values)
    _wait(device)
    done = time.perf_counter()
    return {"prefill": filled - start, "decode": done - filled, "total": done - start}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_gib(model: VistokenForConditionalGeneration, device: torch.device) -> float | None:
    """Peak memory of one answer in GiB, everything resident included; None off CUDA."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    answer(model, device)
    return round(torch.cuda.max_memory_allocated() / 2**30, 2)


def main() -> None:
    """Time each recipe against the baseline, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--recipes", nargs="+", default=["llava-sp-cropping-7b", "llava-sp-pooling-7b"]
    )
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit(str(MachineError("no CUDA device here; this benchmark needs one GPU")))
    base = make_model(arguments.base, device)
    result = {
        "machine": machine(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
        "base": arguments.base,
        "base_peak_gib": peak_gib(base, device),
        "recipes": {},
    }
    for recipe in arguments.recipes:
        model = make_model(recipe, device, base)
        times = take_turns(
            {
                "base": lambda: answer(base, device),
                "model": lambda model=model: answer(model, device),
            },
            rounds=arguments.rounds,
        )
        phases = {p: compare(times["model"][p], times["base"][p]) for p in times["base"]}
        result["recipes"][recipe] = {**phases, "peak_gib": peak_gib(model, device)}
        for phase, figures in phases.items():
            print(f"{recipe} {phase}: {figures['ratio']} [{figures['low']}, {figures['high']}]")
    write(arguments.out, result)


if __name__ == "__main__":
    main()
