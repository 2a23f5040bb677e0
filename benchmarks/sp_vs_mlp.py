"""What the six spatial tokens of LLaVA-SP cost beside the plain `mlp` connector.

    python benchmarks/sp_vs_mlp.py [--rounds 12] [--threads 2] [--out FILE]

FLOPs are counted at 7B on the meta device: one square picture and 64 text tokens, then one decode
step. Time is measured at nano size with random weights, for as many patch tokens as nano has
(pooled) and for the whole grid (unpooled, the paper's proportion of 6 spatial to 576 patch tokens).
Both connectors share towers and language model. Budget: ratio <= 1.02.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from paired import Times, compare, machine, take_turns, write
from torch import Tensor

from vistoken.models.cost import empty_model, measure_cost
from vistoken.models.modeling import VistokenForConditionalGeneration
from vistoken.models.recipe import Recipe, load_recipe

BASE = "llava-1.5-7b"
SP = ("llava-sp-cropping-7b", "llava-sp-pooling-7b")
TEXT_TOKENS, DECODE_STEPS = 64, 16
BUDGET = 1.02
RESULT = Path(__file__).parent / "results" / "sp_vs_mlp.json"


def flops(recipe_name: str) -> dict[str, int]:
    """FLOPs of one picture with text, and of one token after them, by phase."""
    recipe = load_recipe(recipe_name)
    config = recipe.model_config_for()
    cost = measure_cost(empty_model(config), recipe.pipeline(config), text_tokens=TEXT_TOKENS)
    return {
        "visual_tokens": cost.visual_tokens,
        "encode": sum(cost.encode_flops.values()),
        "connect": cost.connect_flops,
        "prefill": cost.prefill_flops,
        "decode_step": cost.decode_flops,
    }


def flop_ratios(ours: dict[str, int], base: dict[str, int]) -> dict[str, float]:
    """Ratios of prompt and decode step; the connector counts with the prompt."""
    sums = {
        "prefill": ("connect", "prefill"),
        "prefill_with_encode": ("encode", "connect", "prefill"),
        "decode_step": ("decode_step",),
    }
    return {
        name: round(sum(ours[p] for p in phases) / sum(base[p] for p in phases), 6)
        for name, phases in sums.items()
    }


def nano_pair(pooled: bool) -> dict[str, VistokenForConditionalGeneration]:
    """Random nano with `llava-sp` and with `mlp`, on shared towers and language model."""
    torch.manual_seed(0)
    recipe = load_recipe("nano")
    ours = VistokenForConditionalGeneration(_with(recipe, pooled, None).model_config_for())
    mlp = {"part": "mlp", "options": {"hidden_width": _mlp_hidden(recipe)}}
    with torch.device("meta"):
        base = VistokenForConditionalGeneration(_with(recipe, pooled, mlp).model_config_for())
    base.model.vision_tower = ours.model.vision_tower
    base.model.language_model, base.lm_head = ours.model.language_model, ours.lm_head
    base.model.multi_modal_projector, base.model.layout = base.model.plan.build()
    return {"llava-sp": ours.eval(), "mlp": base.eval()}


def _with(recipe: Recipe, pooled: bool, project: dict[str, Any] | None) -> Recipe:
    chain = []
    for stage in recipe.connector:
        name = stage if isinstance(stage, str) else stage["part"]
        if name == "pool" and not pooled:
            continue
        chain.append(project if name == "llava-sp" and project is not None else stage)
    return recipe.model_copy(update={"connector": chain})


def _mlp_hidden(recipe: Recipe) -> int:
    """Width of the patch projection inside nano's `llava-sp`, so that both project alike."""
    stages = [stage for stage in recipe.connector if not isinstance(stage, str)]
    (options,) = [stage["options"] for stage in stages if stage["part"] == "llava-sp"]
    width: int = options["mlp_hidden"]
    return width


@torch.inference_mode()
def run_once(
    model: VistokenForConditionalGeneration, pixels: Sequence[Tensor], table: Tensor
) -> Times:
    """Encode, connect, read the prompt, decode; seconds of each phase."""
    stamps = [time.perf_counter()]
    features, _ = model.model.encode(list(pixels), table)
    stamps.append(time.perf_counter())
    image = model.get_image_features(tower_features=features, view_table=table)
    stamps.append(time.perf_counter())
    visual = len(image.pooler_output[0])
    ids = torch.full((1, visual + TEXT_TOKENS), model.config.image_token_id)
    ids[:, visual:] = torch.arange(100, 100 + TEXT_TOKENS)
    outputs = model(input_ids=ids, mm_encoder_outputs={"image": image}, logits_to_keep=1)
    stamps.append(time.perf_counter())
    for _ in range(DECODE_STEPS):
        token = outputs.logits[:, -1].argmax(-1, keepdim=True)
        outputs = model(input_ids=token, past_key_values=outputs.past_key_values)
    stamps.append(time.perf_counter())
    pairs = zip(("encode", "connect", "prefill", "decode"), stamps, stamps[1:], strict=False)
    phases = {name: after - before for name, before, after in pairs}
    return phases | {
        "prefill_and_decode": stamps[-1] - stamps[1],
        "with_encode": stamps[-1] - stamps[0],
    }


def time_ratios(pooled: bool, rounds: int) -> dict[str, Any]:
    """Paired times of the two connectors."""
    pair = nano_pair(pooled)
    recipe = load_recipe("nano")
    spec = recipe.pipeline(pair["mlp"].config)
    table = spec.view_function().view_table(*spec.towers[0].size)
    generator = torch.Generator().manual_seed(0)
    pixels = [torch.randn(3, *tower.size, generator=generator) for tower in spec.towers]
    tokens = {name: len(model.model.plan.arrange(table).order) for name, model in pair.items()}
    measured = take_turns(
        {name: partial(run_once, model, pixels, table) for name, model in pair.items()},
        rounds=rounds,
        warmup=1,
    )
    base = measured["mlp"]
    return {
        "visual_tokens": tokens,
        "sp_to_mlp": {phase: compare(measured["llava-sp"][phase], base[phase]) for phase in base},
    }


def main() -> None:
    """Count, measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    counts = {name: flops(name) for name in (BASE, *SP)}
    ratios = {name: flop_ratios(counts[name], counts[BASE]) for name in SP}
    for name, row in ratios.items():
        print(f"{name:22}", "  ".join(f"{phase} {ratio:.4f}" for phase, ratio in row.items()))
    times = {}
    for name, pooled in (("pooled", True), ("unpooled", False)):
        times[name] = time_ratios(pooled, options.rounds)
        for phase, row in times[name]["sp_to_mlp"].items():
            print(f"{name:9} {phase:18} {row['ratio']:.4f}  [{row['low']:.4f}, {row['high']:.4f}]")
    result = {
        "what": "LLaVA-SP / the plain mlp connector",
        "budget": BUDGET,
        "text_tokens": TEXT_TOKENS,
        "flops": {
            "rule": "multiply-add = 2, attention over the full square, logits of one position",
            "counts": counts,
            "ratios": ratios,
        },
        "time": {
            "model": "nano, random weights, float32",
            "decode_steps": DECODE_STEPS,
            "rounds": options.rounds,
            "threads": options.threads,
            **times,
        },
        "machine": machine(),
    }
    write(options.out, result)


if __name__ == "__main__":
    main()
