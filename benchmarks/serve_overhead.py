"""What the server adds to the model's own time, per request.

    python benchmarks/serve_overhead.py [--requests 300] [--out FILE]

One client, one request at a time over a kept connection, on pico: whatever is not computation of
the engine is overhead (HTTP, JSON, the picture's decoding, the chat template, the tokenizer, hops
between threads). The server says for each request how long the engine computed. Budget: 5 ms.
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


def measure(server: Server, requests: int, *, pictures: bool, tokens: int) -> dict[str, float]:
    """Milliseconds of requests, and what of them was not the engine's."""
    connection = server.connect()
    whole, beside = [], []
    for number in range(requests + 20):
        body = json.dumps(question("pico", number if pictures else None, tokens, ignore_eos=True))
        begun = time.perf_counter()
        connection.request("POST", CHAT, body, JSON)
        answer = connection.getresponse()
        said = answer.read()
        spent = (time.perf_counter() - begun) * 1e3
        if answer.status != 200:
            raise SystemExit(f"the server answered {answer.status}: {said!r}")
        if number >= 20:  # the first ones warm up
            whole.append(spent)
            beside.append(spent - json.loads(said)["timings"]["engine_ms"])
    cuts = statistics.quantiles(beside, n=20)
    return {
        "request_ms": round(statistics.median(whole), 2),
        "overhead_ms": round(statistics.median(beside), 2),
        "overhead_p5_ms": round(cuts[0], 2),
        "overhead_p95_ms": round(cuts[-1], 2),
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
        "what": "a request over HTTP less the engine's computation, pico, one at a time",
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
