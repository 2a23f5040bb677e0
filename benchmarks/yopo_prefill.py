"""Prefill time of YOPO's drop mode against the dense model, beside the ratio of their FLOPs.

    python benchmarks/yopo_prefill.py [--rounds 12] [--threads 2] [--hidden 1024] [--device cuda]
        [--profile] [--out FILE]

A random Llama, by default of hidden size 1,024, with 6 layers reads one picture of 24x24 tokens
between 35 and 64 tokens of text; window 5, no visual row from layer 3 on, half of the heads from
layer 2 on, half of the FFN. FLOPs are counted from the plans: what is multiplied, attention as full
rectangles. Seconds of the processor stand beside those of the clock: a busy machine changes them
less. On a GPU (bfloat16) there are those of the clock alone, and it is waited for.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from paired import Times, compare, machine, now, take_turns, write
from torch.profiler import profile, supported_activities
from transformers import LlamaConfig, LlamaModel

from vistoken.core.parts import grid_token_map
from vistoken.core.tables import VIEW
from vistoken.models.decoder import MechanismContext, MechanismStack, run_decoder
from vistoken.models.plan_cost import count_plans, prompt_map
from vistoken.systems.yopo.config import YopoConfig
from vistoken.systems.yopo.mechanism import Yopo

GRID, BEFORE, AFTER = 24, 35, 64
LAYERS, HEADS, CUT = 6, 16, 3
RESULT = Path(__file__).parent / "results" / "yopo_prefill.json"
ON_GPU = RESULT.with_name("yopo_prefill_cuda.json")


def make_model(hidden: int) -> LlamaModel:
    """Build the random text model."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        vocab_size=1024,
        attn_implementation="sdpa",
    )
    return LlamaModel(config).eval()


def make_prompt() -> torch.Tensor:
    """TokenMap (1, n, K) of the prompt."""
    view = VIEW.make(1, height=14 * GRID, width=14 * GRID)[0]
    return prompt_map([grid_token_map(view, (GRID, GRID))], BEFORE, AFTER)


@torch.inference_mode()
def prefill(model: LlamaModel, embeds: torch.Tensor, **call: Any) -> Times:
    """Run one prompt; with a stack through the loop, without one the stock model."""
    forward = partial(run_decoder, model) if "stack" in call else model
    started, worked = now(embeds.device), time.process_time()
    forward(inputs_embeds=embeds, use_cache=True, **call)
    times = {"clock": now(embeds.device) - started}
    if embeds.device.type == "cuda":
        return times
    return times | {"processor": time.process_time() - worked}


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--device", default="cpu", help="cuda: in bfloat16, a file of its own")
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    on_gpu = device.type == "cuda"
    place: dict[str, Any] = {"device": device, "dtype": torch.bfloat16 if on_gpu else torch.float32}
    model, table = make_model(options.hidden), make_prompt()
    model.to(**place)
    embeds = torch.randn(1, table.shape[1], model.config.hidden_size).to(**place)
    half = "1" * (HEADS // 2) + "0" * (HEADS // 2)
    config = YopoConfig(
        mode="drop",
        window=5,
        layer_cut=CUT,
        head_keep=("1" * HEADS,) * 2 + (half,) * (LAYERS - 2),
        mlp_ratio=2,
    )
    stack = MechanismStack([Yopo(config, MechanismContext(model.config, feature_width=0))])
    counted = {
        "yopo": count_plans(model, stack, table),
        "dense": count_plans(model, MechanismStack([]), table),
    }
    variants = {
        "dense": partial(prefill, model, embeds),
        "yopo": partial(prefill, model, embeds, stack=stack, token_map=table.to(device)),
        "dense_again": partial(prefill, model, embeds),
    }
    measured = take_turns(variants, rounds=options.rounds)
    base = measured["dense"]
    result = {
        "what": "prefill of YOPO in drop mode / of the dense stock model",
        "model": f"llama, hidden {options.hidden}, {LAYERS} layers, {HEADS} heads, "
        + str(place["dtype"]).removeprefix("torch."),
        "tokens": {"visual": GRID * GRID, "text": BEFORE + AFTER},
        "options": config.options(),
        "flop_ratio": round(counted["yopo"].prefill.flops / counted["dense"].prefill.flops, 4),
        "visual_flop_ratio_paper_rule": round(
            counted["yopo"].prefill.visual_flops(25)
            / counted["dense"].prefill.visual_flops(GRID * GRID),
            4,
        ),
        "cache_ratio": round(
            counted["yopo"].prefill.cache_values / counted["dense"].prefill.cache_values, 4
        ),
        "rounds": options.rounds,
        "threads": options.threads,
        "time_ratio": {p: compare(measured["yopo"][p], base[p]) for p in base},
        "dense_to_dense": {p: compare(measured["dense_again"][p], base[p]) for p in base},
        "machine": machine(device),
    }
    write(options.out or (ON_GPU if on_gpu else RESULT), result)
    for name in ("time_ratio", "dense_to_dense"):
        for phase, row in result[name].items():
            print(f"{name:15} {phase:10} {row['ratio']:.4f}  [{row['low']:.4f}, {row['high']:.4f}]")
    print(f"{'flop_ratio':15} {result['flop_ratio']:.4f}")
    if options.profile:
        for name, run in variants.items():
            with profile(activities=list(supported_activities())) as recorded:
                run()
            print(name)
            spent = f"self_{device.type}_time_total"
            print(recorded.key_averages().table(sort_by=spent, row_limit=12))


if __name__ == "__main__":
    main()
