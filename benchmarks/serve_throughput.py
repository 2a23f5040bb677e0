"""16 clients at a time: our server with nano against `transformers serve` with a Llava as large.

    python benchmarks/serve_throughput.py [--clients 16] [--tokens 64] [--rounds 3] [--out FILE]
                                          [--model nano]

Both servers run on the same machine and take turns; every request has a picture of its own and
every answer the same number of tokens. The rival is a Hugging Face Llava with random weights (time
depends on shapes alone): a CLIP of DINOv2-small's size, whose 576 patch tokens reach a language
model of SmolLM2-135M's shape. float32, on the CPU. Targets: at least 3 times the throughput, and a
lower 95th percentile of the time to answer. `--model pico --clients 2 --tokens 8 --rounds 1` tries
in a minute whether all of it works; its figures mean nothing. Needs the extras `serve` and `dev`:
`transformers serve` wants fastapi, uvicorn and openai, and nothing else. Its continuous batching is
for models without pictures: with `--continuous-batching` a Llava is still answered one by one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from paired import compare, machine, write
from serving import CHAT, JSON, Server, free_port, our_server, question

RESULT = Path(__file__).parent / "results" / "serve_throughput.json"
TARGET = 3.0
# One rival tower for each model: of its encoder's width and depth, with as many patches.
_TOWERS = {
    "nano": {
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "image_size": 336,
        "patch_size": 14,
    },
    "pico": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
    },
}
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}<image>\n{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


def make_rival(model: str, folder: Path) -> dict[str, Any]:
    """Write a Hugging Face Llava of that model's size; parameters of both."""
    import torch
    from transformers import (
        CLIPImageProcessorPil,
        GenerationConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    from vistoken.api import load

    ours, processor = load(model, "cpu")
    text = ours.config.text_config.to_dict()
    tower = _TOWERS[model]
    tokenizer = processor.tokenizer
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **tower},
        text_config={**text, "eos_token_id": None},
        image_token_id=processor.image_token_id,
    )
    torch.manual_seed(0)
    rival = LlavaForConditionalGeneration(config)
    rival.generation_config = GenerationConfig(pad_token_id=0, do_sample=False)
    rival.save_pretrained(folder)
    side = tower["image_size"]
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=tower["patch_size"],
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_TEMPLATE,
    ).save_pretrained(folder)
    return {model: ours.num_parameters(), "rival": rival.num_parameters()}


def rival_server(folder: Path, log: Path) -> Server:
    """`transformers serve` with that model."""
    port = free_port()
    words = ["-c", "from transformers.cli.transformers import app; app()", "serve", str(folder)]
    words += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    return Server(words, port, log)


def ask(server: Server, model: str, seed: int, tokens: int, **more: Any) -> float:
    """Seconds until an answer of so many tokens."""
    body = json.dumps(question(model, seed, tokens, **more))
    connection = server.connect(1200)
    begun = time.perf_counter()
    connection.request("POST", CHAT, body, JSON)
    answer = connection.getresponse()
    said = answer.read()
    spent = time.perf_counter() - begun
    connection.close()
    if answer.status != 200:
        raise SystemExit(f"{model}: {answer.status} {said[:500]!r}")
    written = json.loads(said)["usage"]["completion_tokens"]
    if written != tokens:
        raise SystemExit(f"{model}: an answer has {written} tokens instead of {tokens}")
    return spent


def round_of(
    server: Server, model: str, clients: int, tokens: int, first: int, **more: Any
) -> dict[str, Any]:
    """All clients at once: seconds of the whole round, and of each request."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        times = list(
            threads.map(
                lambda n: ask(server, model, n, tokens, **more), range(first, first + clients)
            )
        )
    return {"seconds": time.perf_counter() - begun, "requests": times}


def summary(rounds: list[dict[str, Any]], clients: int, tokens: int) -> dict[str, float]:
    """Tokens per second, and percentiles of the time to answer."""
    times = [spent for one in rounds for spent in one["requests"]]
    cuts = statistics.quantiles(times, n=20, method="inclusive")
    seconds = statistics.median(one["seconds"] for one in rounds)
    return {
        "tokens_per_s": round(clients * tokens / seconds, 2),
        "p50_s": round(statistics.median(times), 2),
        "p95_s": round(cuts[-1], 2),
    }


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=sorted(_TOWERS), default="nano")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    model, clients, tokens = options.model, options.clients, options.tokens
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parameters = make_rival(model, folder / "llava")
        rival_name = str(folder / "llava")
        theirs, ours = [], []
        rival = rival_server(folder / "llava", folder / "rival.log")
        try:
            with our_server(model, folder / "our.log", {"max_rows": clients}) as server:
                rival.wait()
                ask(server, model, 900_001, 4, ignore_eos=True)
                ask(rival, rival_name, 900_002, 4)
                for number in range(options.rounds):
                    first = 1000 * number
                    ours.append(round_of(server, model, clients, tokens, first, ignore_eos=True))
                    print(f"ours   {ours[-1]['seconds']:7.1f} s", flush=True)
                    theirs.append(round_of(rival, rival_name, clients, tokens, first))
                    print(f"theirs {theirs[-1]['seconds']:7.1f} s", flush=True)
        finally:
            rival.end()
    ratio = compare([one["seconds"] for one in theirs], [one["seconds"] for one in ours])
    result = {
        "what": f"{model}: {clients} clients at once, a picture each, answers of {tokens} tokens",
        "parameters": parameters,
        "target": TARGET,
        "ours": summary(ours, clients, tokens),
        "transformers_serve": summary(theirs, clients, tokens),
        "throughput_ratio": {key: ratio[key] for key in ("ratio", "low", "high")},
        "rounds": options.rounds,
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "machine": machine(),
    }
    write(options.out, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
