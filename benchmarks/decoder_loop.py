"""Cost of the decoder loop, forced with a no-op mechanism, against the stock text model.

    python benchmarks/decoder_loop.py [--rounds 40] [--threads 2] [--out FILE]

A random Llama of hidden size 1,024 and 4 layers reads a prompt of 256 tokens and decodes 32 more,
through the stock forward, through the loop, and through the stock forward again: the last two
stock runs compared with each other say how much of a ratio is noise. Budget: ratio <= 1.02.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from paired import Times, compare, machine, take_turns, write
from transformers import LlamaConfig, LlamaModel

from vistoken.models.decoder import MechanismStack, NoOp, run_decoder

PROMPT_TOKENS, DECODE_STEPS = 256, 32
BUDGET = 1.02
RESULT = Path(__file__).parent / "results" / "decoder_loop.json"


def make_model() -> LlamaModel:
    """Build the random text model."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=4,
        num_attention_heads=16,
        num_key_value_heads=8,
        vocab_size=1024,
        attn_implementation="sdpa",
    )
    return LlamaModel(config).eval()


@torch.inference_mode()
def prefill_and_decode(forward: Callable[..., Any], ids: torch.Tensor) -> Times:
    """Run one prompt and the steps after it; seconds of each phase."""
    prompt, steps = ids[:, :PROMPT_TOKENS], ids[:, PROMPT_TOKENS:].split(1, dim=1)
    mask = torch.ones_like(ids)
    started = time.perf_counter()
    cache = forward(
        input_ids=prompt, attention_mask=mask[:, :PROMPT_TOKENS], use_cache=True
    ).past_key_values
    filled = time.perf_counter()
    for number, token in enumerate(steps, start=PROMPT_TOKENS + 1):
        seen = mask[:, :number]
        forward(input_ids=token, attention_mask=seen, past_key_values=cache, use_cache=True)
    done = time.perf_counter()
    return {"prefill": filled - started, "decode": done - filled, "total": done - started}


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = make_model()
    ids = torch.randint(0, 1024, (1, PROMPT_TOKENS + DECODE_STEPS))
    looped = partial(run_decoder, model, stack=MechanismStack([NoOp()]))
    measured = take_turns(
        {
            "stock": partial(prefill_and_decode, model, ids),
            "loop": partial(prefill_and_decode, looped, ids),
            "stock_again": partial(prefill_and_decode, model, ids),
        },
        rounds=options.rounds,
    )
    phases = measured["stock"]
    result = {
        "what": "decoder loop forced with a no-op mechanism / stock text model",
        "budget": BUDGET,
        "model": "llama, hidden 1024, 4 layers, 16 heads, 8 key/value heads, float32",
        "prompt_tokens": PROMPT_TOKENS,
        "decode_steps": DECODE_STEPS,
        "rounds": options.rounds,
        "threads": options.threads,
        "loop_to_stock": {p: compare(measured["loop"][p], phases[p]) for p in phases},
        "stock_to_stock": {p: compare(measured["stock_again"][p], phases[p]) for p in phases},
        "machine": machine(),
    }
    write(options.out, result)
    for name in ("loop_to_stock", "stock_to_stock"):
        for phase, row in result[name].items():
            print(f"{name:15} {phase:8} {row['ratio']:.4f}  [{row['low']:.4f}, {row['high']:.4f}]")


if __name__ == "__main__":
    main()
