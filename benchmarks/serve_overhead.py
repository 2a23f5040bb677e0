"""What the server adds to the model's own time, per request.

    python benchmarks/serve_overhead.py [--requests 300] [--out FILE]

One client, one request at a time over a kept connection, on pico. What is not computation of the
engine and not the making of the prompt (chat template, tokenizer, picture to pixels: the model
needs it without a server, too) is overhead: HTTP, JSON, the picture's decoding, hops between
threads. On a busy machine the clock says little, so seconds of a core are given as well: what the
process takes beside the engine's thread, the making of prompts included. Budget: 5 ms.
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


def measure(server: Server, requests: int, *, pictures: bool, tokens: int) -> dict[str, float]:
    """Milliseconds of requests, and what of them was not the engine's."""
    connection = server.connect()
    whole, beside, made = [], [], []
    for number in range(-WARM_UP, requests):
        if number == 0:
            cores, engine = server.core_seconds(), server.metrics()[ENGINE_SECONDS]
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
    cores = server.core_seconds() - cores
    engine = server.metrics()[ENGINE_SECONDS] - engine
    cuts = statistics.quantiles(beside, n=20)
    return {
        "request_ms": round(statistics.median(whole), 2),
        "prepare_ms": round(statistics.median(made), 2),
        "overhead_ms": round(statistics.median(beside), 2),
        "overhead_p5_ms": round(cuts[0], 2),
        "overhead_p95_ms": round(cuts[-1], 2),
        "core_ms_beside_the_engine": round(1e3 * (cores - engine) / requests, 2),
    }


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
        "what": "a request over HTTP less the engine and the prompt, pico, one at a time",
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
