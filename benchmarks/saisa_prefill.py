"""Prefill time of SAISA against the dense model, beside the ratio of their FLOPs.

    python benchmarks/saisa_prefill.py [--rounds 20] [--threads 2] [--hidden 1024]
        [--layers 4] [--device cuda] [--profile] [--out FILE]

A random Llama, by default of hidden size 1,024 and 4 layers, reads 576 visual and 64 text tokens:
dense through its own forward, with SAISA, with SAISA whose visual keys and values are ready, and
dense again for the noise. The FLOPs are counted from the plans. Bar: the ratio of times within 15 %
of that of FLOPs. Seconds of the processor stand beside those of the clock: they can be trusted on a
busy machine as well. On a GPU (bfloat16) there are those of the clock alone, and it is waited for.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from paired import Times, compare, machine, now, take_turns, write
from torch import Tensor
from torch.profiler import profile, supported_activities
from transformers import LlamaConfig, LlamaModel

from vistoken.core.parts import FEATURES
from vistoken.core.tables import TOKEN, TokenKind
from vistoken.models.decoder import (
    MechanismContext,
    MechanismStack,
    NoOp,
    project_kv,
    run_decoder,
)
from vistoken.models.plan_cost import count_plans, prompt_map
from vistoken.systems.saisa.config import SaisaConfig
from vistoken.systems.saisa.mechanism import Saisa
from vistoken.systems.saisa.visual_kv import VISUAL_KV, VisualKV

SLOTS, BEFORE, AFTER, FEATURE_WIDTH = 576, 20, 44, 1024
BAR = 0.15
RESULT = Path(__file__).parent / "results" / "saisa_prefill.json"
ON_GPU = RESULT.with_name("saisa_prefill_cuda.json")


def make_model(hidden: int, layers: int) -> LlamaModel:
    """Build the random text model, its layers shaped like those of the 7B one."""
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 43 // 16,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 128,
        num_key_value_heads=hidden // 128,
        vocab_size=1024,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    return LlamaModel(config).eval()


@torch.inference_mode()
def prefill(forward: Callable[..., Any], embeds: Tensor, **inputs: Any) -> Times:
    """Run one prompt into an empty cache; its seconds by the clock and of the processor."""
    device = embeds.device
    started, used = now(device), time.process_time()
    forward(inputs_embeds=embeds, **inputs, use_cache=True)
    times = {"prefill": now(device) - started}
    return times if device.type == "cuda" else times | {"cores": time.process_time() - used}


@torch.inference_mode()
def ready_keys(model: LlamaModel, saisa: Saisa, features: Tensor) -> VisualKV:
    """What is computed once per image."""
    layers = range(len(model.layers))
    made = [project_kv(model, layer, saisa.project(layer, features)) for layer in layers]
    return VisualKV(tuple(kv.keys for kv in made), tuple(kv.values for kv in made))


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--device", default="cpu", help="cuda: in bfloat16, a file of its own")
    parser.add_argument("--profile", action="store_true", help="print where SAISA's time goes")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    on_gpu = device.type == "cuda"
    place: dict[str, Any] = {"device": device, "dtype": torch.bfloat16 if on_gpu else torch.float32}
    model = make_model(options.hidden, options.layers)
    saisa = Saisa(SaisaConfig("independent"), MechanismContext(model.config, FEATURE_WIDTH)).eval()
    model.to(**place)
    saisa.to(**place)
    features = torch.randn(SLOTS, FEATURE_WIDTH).to(**place)
    table = prompt_map([TOKEN.make(SLOTS, kind=TokenKind.VISUAL, media=0, view=0)], BEFORE, AFTER)
    embeds = torch.randn(1, BEFORE + SLOTS + AFTER, model.config.hidden_size).to(**place)
    stack = MechanismStack([saisa])
    looped = partial(run_decoder, model, token_map=table.to(device), stack=stack)
    once = {FEATURES: [features], VISUAL_KV: [ready_keys(model, saisa, features)]}
    dense = partial(prefill, model, embeds)
    ours = partial(prefill, looped, embeds, side={FEATURES: [features]})
    measured = take_turns(
        {
            "dense": dense,
            "saisa": ours,
            "ready": partial(prefill, looped, embeds, side=once),
            "dense_again": dense,
        },
        rounds=options.rounds,
    )

    def flops(mechanism: Any, side: dict[str, Any]) -> int:
        return count_plans(model, MechanismStack([mechanism]), table, side).prefill.flops

    stock = flops(NoOp(), {})
    ratios = {
        "saisa": flops(saisa, {FEATURES: [features]}) / stock,
        "ready": flops(saisa, once) / stock,
        "dense_again": 1.0,
    }
    rows = {
        name: {
            "flops_ratio": round(ratio, 4),
            **{
                phase: compare(measured[name][phase], measured["dense"][phase])
                for phase in measured["dense"]
            },
        }
        for name, ratio in ratios.items()
    }
    result = {
        "what": "prefill with SAISA / dense prefill, time beside FLOPs",
        "bar": f"time ratio within {BAR:.0%} of the FLOP ratio",
        "model": f"llama, hidden {options.hidden}, {options.layers} layers, heads of 128, "
        f"{str(place['dtype']).removeprefix('torch.')}; "
        f"features of width {FEATURE_WIDTH}",
        "visual_tokens": SLOTS,
        "text_tokens": BEFORE + AFTER,
        "rounds": options.rounds,
        "threads": options.threads,
        "to_dense": rows,
        "machine": machine(device),
    }
    write(options.out or (ON_GPU if on_gpu else RESULT), result)
    for name, row in rows.items():
        for phase in measured[name]:
            found = row[phase]
            print(
                f"{name:12} {phase:8} {found['ratio']:.3f} [{found['low']:.3f}, "
                f"{found['high']:.3f}]  FLOPs {ratios[name]:.3f}  "
                f"time/FLOPs {found['ratio'] / ratios[name]:.3f}"
            )
    if options.profile:
        for name, run in (("dense", dense), ("saisa", ours)):
            with profile(activities=list(supported_activities())) as recorded:
                run()
            print(name)
            spent = f"self_{device.type}_time_total"
            print(recorded.key_averages().table(sort_by=spent, row_limit=12))


if __name__ == "__main__":
    main()
