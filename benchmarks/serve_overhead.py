"""What the server adds to the model's own time, per request.

    python benchmarks/serve_overhead.py [--requests 300] [--out FILE]

One client, one request at a time over a kept connection, on pico. What counts is the seconds of a
core that the server's process takes per request, all threads, less those of the engine's thread
(the model, sampling, tokens to text) and less those of making the prompt (chat template, tokenizer,
picture to pixels), which the model needs without a server, too. What is left is HTTP, JSON, checks,
the decoding of the picture's file, hops between threads and the metrics. Budget: 5 ms. The same by
the clock stands beside it; on a busy machine, where threads wait for a core, it says little.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from paired import machine, write
from serving import CHAT, JSON, Server, our_server, question

RESULT = Path(__file__).parent / "results" / "serve_overhead.json"
BUDGET_MS = 5.0
WARM_UP = 20
ENGINE_SECONDS = 'vistoken_engine_cpu_seconds_total{model="pico"}'
PROMPT_SECONDS = 'vistoken_engine_prepare_cpu_seconds_total{model="pico"}'


def measure(server: Server, requests: int, *, pictures: bool, tokens: int) -> dict[str, float]:
    """Milliseconds of a core and of the clock per request, and whose they were."""
    connection = server.connect()
    whole, beside, made = [], [], []
    for number in range(-WARM_UP, requests):
        if number == 0:
            begin = _seconds(server)
        body = json.dumps(question("pico", number if pictures else None, tokens, ignore_eos=True))
        begun = time.perf_counter()
        connection.request("POST", CHAT, body, JSON)
        answer = connection.getresponse()
        said = answer.read()
        spent = (time.perf_counter() - begun) * 1e3
        if answer.status != 200:
            raise SystemExit(f"the server answered {answer.status}: {said!r}")
        if number >= 0:
            took = json.loads(said)["timings"]
            whole.append(spent)
            made.append(took["prepare_ms"])
            beside.append(spent - took["engine_ms"] - took["prepare_ms"])
    cores, engine, prompts = (
        1e3 * (now - then) / requests for now, then in zip(_seconds(server), begin, strict=True)
    )
    cuts = statistics.quantiles(beside, n=20)
    return {
        "overhead_core_ms": round(cores - engine - prompts, 2),
        "engine_core_ms": round(engine, 2),
        "prompt_core_ms": round(prompts, 2),
        "request_clock_ms": round(statistics.median(whole), 2),
        "prompt_clock_ms": round(statistics.median(made), 2),
        "overhead_clock_ms": round(statistics.median(beside), 2),
        "overhead_clock_p5_ms": round(cuts[0], 2),
        "overhead_clock_p95_ms": round(cuts[-1], 2),
    }


def _seconds(server: Server) -> tuple[float, float, float]:
    """Seconds of a core: the process, its engine's thread, the making of prompts."""
    metrics = server.metrics()
    return server.core_seconds(), metrics[ENGINE_SECONDS], metrics[PROMPT_SECONDS]


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    rows: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        our_server("pico", Path(folder) / "log") as server,
    ):
        for name, pictures in (("text", False), ("picture", True)):
            rows[name] = measure(server, options.requests, pictures=pictures, tokens=8)
    result = {
        "what": "milliseconds of a core per request, less engine and prompt; pico, one at a time",
        "budget_ms": BUDGET_MS,
        "requests": options.requests,
        "rows": rows,
        "machine": machine(),
    }
    write(options.out, result)
    for name, row in rows.items():
        print(f"{name:8}", row)


if __name__ == "__main__":
    main()
