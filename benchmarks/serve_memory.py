"""Memory of the server over many requests: does it stay flat?

    python benchmarks/serve_memory.py [--requests 1000] [--clients 8] [--out FILE]

pico behind HTTP; every request has a picture of its own, half of them are streamed, every tenth
client leaves in the middle. The picture cache is small, so it is full before the count begins.
Flat: what the process holds at the end is within 2 % of what it held after the warm-up, no more
files are open, and it leaves with code 0.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from paired import machine, write
from serving import CHAT, JSON, Server, our_server, question

RESULT = Path(__file__).parent / "results" / "serve_memory.json"
WARM_UP = 300
EVERY = 100
ALLOWED = 0.02


def one(server: Server, number: int) -> None:
    """A request: whole, streamed, or left in the middle."""
    stream = number % 2 == 0
    tokens = 200 if number % 10 == 0 else 4 + number % 13
    body = json.dumps(question("pico", number, tokens, stream=stream, ignore_eos=True))
    connection = server.connect()
    connection.request("POST", CHAT, body, JSON)
    answer = connection.getresponse()
    if answer.status != 200:
        raise SystemExit(f"request {number}: {answer.status} {answer.read()!r}")
    if number % 10 == 0:
        answer.readline()
    else:
        answer.read()
    connection.close()


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    held: list[int] = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.clients) as clients:
        limits = {"image_cache_bytes": 2**20}
        with our_server("pico", Path(folder) / "log", limits) as server:
            files = 0
            for start in range(0, WARM_UP + options.requests, EVERY):
                for _ in clients.map(lambda n: one(server, n), range(start, start + EVERY)):
                    pass
                if start + EVERY == WARM_UP:
                    files = server.open_files()
                if start + EVERY >= WARM_UP:
                    held.append(server.resident_bytes())
                    print(f"{start + EVERY:6} requests {held[-1] / 2**20:8.1f} MiB", flush=True)
            more_files = server.files_beyond(files)
            code = server.end()
    growth = held[-1] / held[0] - 1
    result = {
        "what": "resident memory of the server after every 100 requests, pico",
        "requests": options.requests,
        "warm_up": WARM_UP,
        "mib": [round(value / 2**20, 1) for value in held],
        "growth": round(growth, 4),
        "allowed": ALLOWED,
        "more_open_files": more_files,
        "exit_code": code,
        "machine": machine(),
    }
    write(options.out, result)
    print(f"growth {growth:+.2%} over {options.requests} requests, {more_files:+} open files")
    if growth > ALLOWED or more_files > 0 or code != 0:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
