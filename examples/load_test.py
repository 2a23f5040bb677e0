"""How many requests does a server bear? Ask any OpenAI-compatible one from several clients at once.

python examples/load_test.py http://127.0.0.1:8000 MODEL [--clients 16] [--requests 64] \
    [--tokens 64] [--picture examples/scene.png]

Prints requests and tokens per second, and percentiles of the time to the first token and to the
last. A key is taken from the variable OPENAI_API_KEY. The standard library is enough.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import math
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

QUESTION = "What is in the picture?"


def one_request(address: str, body: bytes) -> tuple[float, float, int]:
    """Seconds to the first token and to the last, and tokens of a streamed answer."""
    target = urlsplit(address)
    kind = http.client.HTTPSConnection if target.scheme == "https" else http.client.HTTPConnection
    connection = kind(target.netloc, timeout=600)
    headers = {"Content-Type": "application/json"}
    if "OPENAI_API_KEY" in os.environ:
        headers["Authorization"] = f"Bearer {os.environ['OPENAI_API_KEY']}"
    begun = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", body, headers)
    answer = connection.getresponse()
    if answer.status != 200:
        raise SystemExit(f"{answer.status}: {answer.read().decode()}")
    first, tokens = 0.0, 0
    for line in answer:
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        if "error" in event:
            raise SystemExit(event["error"]["message"])
        if not first and any(c["delta"].get("content") for c in event["choices"]):
            first = time.perf_counter() - begun
        tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    connection.close()
    last = time.perf_counter() - begun
    return first or last, last, tokens


def main() -> None:
    """Ask, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address")
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    content: list[object] = [{"type": "text", "text": QUESTION}]
    if options.picture is not None:
        encoded = base64.b64encode(options.picture.read_bytes()).decode()
        suffix = options.picture.suffix.lstrip(".")
        url = {"url": f"data:image/{suffix};base64,{encoded}"}
        content.insert(0, {"type": "image_url", "image_url": url})
    body = json.dumps(
        {
            "model": options.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": options.tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    begun = time.perf_counter()
    with ThreadPoolExecutor(options.clients) as clients:
        asked = [
            clients.submit(one_request, options.address, body) for _ in range(options.requests)
        ]
        results = [request.result() for request in asked]
    seconds = time.perf_counter() - begun
    tokens = sum(count for _, _, count in results)
    print(f"{options.requests / seconds:.2f} requests/s, {tokens / seconds:.1f} tokens/s")
    for name, times in (
        ("first token", [r[0] for r in results]),
        ("answer", [r[1] for r in results]),
    ):
        slow = sorted(times)[math.ceil(0.95 * len(times)) - 1]
        print(f"{name:12} median {statistics.median(times):.3f} s, 95 % within {slow:.3f} s")


if __name__ == "__main__":
    main()
