"""Fuzz the server: no crash, no status 500, nothing left behind.

    python benchmarks/serve_fuzz.py [--cases 10000] [--schemathesis 2000] [--out FILE]

pico in a process of its own, on loopback. Part of the requests are made by schemathesis from our
OpenAPI description, as it allows and as it forbids; the others by hand: malformed JSON, bad
base64, broken pictures, decompression bombs, lying headers, slow clients, clients that leave. In
the end the server must still answer, hold no request and no more files, leave with code 0, and
have stopped growing: by no more than 1 % in the last quarter of the cases by hand and those of
schemathesis (4,000 of 10,000). Before, caches fill and the allocator keeps what the largest cases
at once took; what leaks goes on.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import socket
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fuzzing import Case, make_case
from paired import machine, write
from serving import CHAT, Server, our_server

RESULT = Path(__file__).parent / "results" / "serve_fuzz.json"
SETTINGS = {"header_timeout_s": 1.0, "body_timeout_s": 1.0, "max_body_bytes": 2**20}
PARTS = 4
ALLOWED = 0.01
LIMITS = {"image_cache_bytes": 2**20, "max_queue": 64}
_NOT_SUPPORTED = (
    "frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "top_logprobs", "tools",
    "tool_choice", "response_format", "modalities", "token_budget", "stream_options",
)  # fmt: skip
Counts = collections.Counter[str]


def play(case: Case, port: int) -> str:
    """Be that client; what came of it."""
    with socket.create_connection(("127.0.0.1", port), 60) as line:
        try:
            for number, piece in enumerate(case.pieces):
                if number:
                    time.sleep(case.pause_s)
                line.sendall(piece)
            if case.leave == "at once":
                return "left"
            beginning = line.recv(65536)
            if case.leave == "first piece":
                return "left"
            while line.recv(65536):
                pass
        except (ConnectionResetError, BrokenPipeError):
            # it had said why not, and would not listen to the rest
            return "closed"
    if not beginning:
        return "closed"
    return beginning.split(b" ", 2)[1].decode("latin-1")


def judge(case: Case, outcome: str) -> str | None:
    """What is wrong with an outcome; None if nothing is."""
    if case.kind == "fine":
        return None if outcome in ("200", "429") else f"a request in order got {outcome}"
    if outcome == "closed":
        return None if case.no_answer or case.kind == "too big" else "closed without a word"
    if outcome.startswith("5") and outcome not in ("503", "504"):
        return f"status {outcome}"
    return None


def by_hand(server: Server, cases: range, clients: int, seed: int) -> tuple[Counts, list[str]]:
    """Play cases of these numbers, some at a time."""
    counts: Counts = collections.Counter()
    faults: list[str] = []
    lock = threading.Lock()

    def one(number: int) -> None:
        case = make_case(random.Random(seed * 1_000_003 + number))
        try:
            outcome = play(case, server.port)
        except TimeoutError:
            outcome = "no answer in 60 s"
        fault = "no answer" if outcome.startswith("no answer") else judge(case, outcome)
        with lock:
            counts[f"{case.kind}: {outcome}"] += 1
            if fault is not None:
                faults.append(f"case {number}, {case.kind}: {fault}")

    with ThreadPoolExecutor(clients) as threads:
        for _ in threads.map(one, cases):
            pass
    return counts, faults


def by_description(server: Server, cases: int) -> tuple[Counts, list[str]]:
    """Let schemathesis ask, within the description and against it."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from schemathesis import GenerationMode

    counts: Counts = collections.Counter()
    faults: list[str] = []
    described = json.loads(server.get("/openapi.json")[1])
    operation = schemathesis.openapi.from_dict(described)[CHAT]["POST"]

    def ask(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = "pico"  # a made-up name would end every request at once
            case.body.setdefault("max_tokens", 4)  # random weights never come to an end
            if counts.total() % 2:  # so would what is known and not supported
                for name in _NOT_SUPPORTED:
                    case.body.pop(name, None)
        answer = case.call(base_url=f"http://127.0.0.1:{server.port}", timeout=120)
        counts[f"schemathesis: {answer.status_code}"] += 1
        if answer.status_code >= 500 and answer.status_code not in (503, 504):
            faults.append(f"schemathesis: status {answer.status_code} for {case.body!r:.300}")

    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
        limited = settings(
            max_examples=max(1, cases // 2),
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        made = given(case=operation.as_strategy(generation_mode=mode))
        limited(seed(1)(made(ask)))()
    return counts, faults


def own_faults(server: Server) -> dict[str, float]:
    """Answers of the kind 500, as the server counts them: also those that nobody waited for."""
    counted = server.metrics()
    return {k: v for k, v in counted.items() if "requests_total" in k and 'status="500"' in k}


def left_behind(server: Server) -> dict[str, float]:
    """What the server still holds, once it had time to let go."""
    end = time.monotonic() + 30
    while True:
        metrics = server.metrics()
        held = {
            key: metrics[f'vistoken_engine_{key}{{model="pico"}}']
            for key in ("rows", "reading", "waiting", "kv_bytes")
        }
        if not any(held.values()) or time.monotonic() > end:
            return held
        time.sleep(0.2)


def growth(held: Sequence[float]) -> float:
    """Memory at the end over memory before the last part by hand, which schemathesis follows."""
    return held[-1] / held[-3] - 1


def main() -> None:
    """Fuzz, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000, help="of both kinds together")
    parser.add_argument("--schemathesis", type=int, default=2000, help="how many of them")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--log", type=Path, help="where to keep what the server says")
    options = parser.parse_args()
    manual = options.cases - options.schemathesis
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with our_server("pico", log, LIMITS, **SETTINGS) as server:
            first = range(max(200, manual // 10))
            warm, faults = by_hand(server, first, options.clients, options.seed + 1)
            left_behind(server)
            memory, files = [server.resident_bytes()], server.open_files()
            counts: Counts = collections.Counter()
            for part in range(PARTS):
                some = range(part * manual // PARTS, (part + 1) * manual // PARTS)
                found, wrong = by_hand(server, some, options.clients, options.seed)
                counts += found
                faults += wrong
                left_behind(server)
                memory.append(server.resident_bytes())
            theirs, their_faults = by_description(server, options.schemathesis)
            held = left_behind(server)
            own = own_faults(server)
            memory.append(server.resident_bytes())
            more_files = server.files_beyond(files)
            healthy = server.get("/health")[0] == 200
            code = server.end()
        said = log.read_text()
    if options.log is not None:
        options.log.write_text(said)
    faults += their_faults
    faults += [f"counted by the server: {key} = {value:g}" for key, value in own.items()]
    faults += [f"left behind: {key} = {value:g}" for key, value in held.items() if value]
    if not healthy or code != 0:
        faults.append(f"health {healthy}, exit code {code}")
    if more_files > 0:
        faults.append(f"{more_files} more files are open than after the warm-up")
    if tracebacks := said.count("Traceback"):
        faults.append(f"{tracebacks} tracebacks in the log")
    if (grown := growth(memory)) > ALLOWED:
        faults.append(f"memory grew by {grown:.1%}, more than {ALLOWED:.0%}")
    result = {
        "what": "fuzzed requests to pico's server",
        "cases": options.cases,
        "warm_up_cases": sum(warm.values()),
        "outcomes": dict(sorted((counts + theirs).items())),
        "faults": faults[:50],
        "tracebacks_in_log": tracebacks,
        # after the warm-up, after each quarter of the cases by hand, and after schemathesis
        "mib": [round(size / 2**20, 1) for size in memory],
        # over the last quarter by hand and schemathesis
        "growth": round(grown, 4),
        "allowed": ALLOWED,
        "more_open_files": more_files,
        "exit_code": code,
        "seconds": round(time.monotonic() - begun),
        "machine": machine(),
    }
    write(options.out, result)
    print(json.dumps({k: v for k, v in result.items() if k != "machine"}, indent=1))
    if faults:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
