"""Requests that nobody should send: raw bytes for a connection, and what the client then does."""

from __future__ import annotations

import base64
import json
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from serving import CHAT, picture_url, question


@dataclass(frozen=True)
class Case:
    """What a client does.

    Args:
        kind: What is wrong with it.
        pieces: Bytes to send, one after the other.
        pause_s: Seconds between two pieces.
        leave: When to go: never, before reading anything, or after a first piece of the answer.
        no_answer: Whether the server may close without a word.
    """

    kind: str
    pieces: list[bytes] = field(default_factory=list)
    pause_s: float = 0.0
    leave: str = "never"
    no_answer: bool = False


def http_request(body: bytes, *, length: int | None = None, **headers: str) -> bytes:
    """A POST to the chat route; `length` lies about the body."""
    told = {
        "Host": "localhost",
        "Content-Type": "application/json",
        "Content-Length": str(len(body) if length is None else length),
        "Connection": "close",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in told.items())
    return f"POST {CHAT} HTTP/1.1\r\n{lines}\r\n".encode("latin-1", "replace") + body


def encoded(body: Any) -> bytes:
    """A body as JSON."""
    return json.dumps(body).encode()


def malformed_json(dice: random.Random) -> Case:
    """Valid JSON, then bytes cut, changed or put in."""
    body = bytearray(encoded(question("pico", dice.choice([None, 1]), 2)))
    for _ in range(dice.randint(1, 4)):
        place = dice.randrange(len(body))
        what = dice.randrange(3)
        if what == 0:
            del body[place:]
        elif what == 1:
            body[place] = dice.randrange(256)
        else:
            body[place:place] = dice.choice([b"{", b"]", b'"', b"\\u", b"\xff", b"1e999", b"NaN"])
        if not body:
            break
    return Case("malformed json", [http_request(bytes(body))])


def deep_json(dice: random.Random) -> Case:
    """Nested far deeper than anything reads."""
    opening = dice.choice([b"[", b'{"a":', b'{"messages":['])
    return Case("deep json", [http_request(opening * dice.choice([100, 5000, 50_000]))])


def odd_values(dice: random.Random) -> Case:
    """A field of the right name with a value of the wrong kind."""
    body = question("pico", None, 2)
    value = dice.choice(
        [None, True, -1, 0, 2**70, -(2**70), 1e308, "", "x" * 5000, [], {}, [[]], "\ud800", "\0"]
    )
    name = dice.choice(
        ["model", "messages", "max_tokens", "temperature", "top_p", "n", "seed", "stop", "stream",
         "stream_options", "token_budget", "logit_bias", "tools", "extra", "user", "metadata"]
    )  # fmt: skip
    if dice.random() < 0.3:
        message = body["messages"][0]
        message[dice.choice(["role", "content", "name", "extra"])] = value
    else:
        body[name] = value
    return Case("odd values", [http_request(encoded(body))])


def with_picture(kind: str, url: str) -> Case:
    """A request whose picture is at a URL."""
    body = question("pico", 0, 2)
    body["messages"][0]["content"][0]["image_url"]["url"] = url
    return Case(kind, [http_request(encoded(body))])


def bad_base64(dice: random.Random) -> Case:
    """A data URL with letters that are none, cut, or said to be something else."""
    url = picture_url(dice.randrange(1000))
    place = dice.randrange(5, len(url))
    url = dice.choice(
        [url[:place], url[:place] + "@" + url[place:], url.replace(";base64", ""), url + "=",
         url.replace("data:", "file:"), "data:" + "A" * dice.randrange(9), "/etc/passwd",
         "http://127.0.0.1/x.png", url[:place] + "\x00"]
    )  # fmt: skip
    return with_picture("bad base64", url)


def broken_picture(dice: random.Random) -> Case:
    """A picture with bytes changed or cut."""
    data = bytearray(base64.b64decode(picture_url(dice.randrange(1000)).partition(",")[2]))
    for _ in range(dice.randint(1, 8)):
        data[dice.randrange(len(data))] = dice.randrange(256)
    if dice.random() < 0.3:
        del data[dice.randrange(len(data)) :]
    return with_picture("broken picture", _data_url(bytes(data)))


def bomb(dice: random.Random) -> Case:
    """A small file that says it unpacks to a great many pixels."""
    width, height = dice.choice([(50_000, 50_000), (2**31 - 1, 2), (30_000, 9_000), (1, 2**30)])
    header = struct.pack(">IIBBBBB", width, height, 8, dice.choice([0, 2, 6]), 0, 0, 0)
    packed = zlib.compress(b"\0" * 2 ** dice.randrange(10, 22))
    data = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header)
    if dice.random() < 0.3:
        data += _chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 2**24))
    return with_picture("bomb", _data_url(data + _chunk(b"IDAT", packed)))


def too_big(dice: random.Random) -> Case:
    """More bytes than are allowed, announced or not."""
    if dice.random() < 0.5:
        return Case("too big", [http_request(b"{}", length=2**40)])
    return Case("too big", [http_request(encoded(question("pico", None, 2, user="x" * 2**20)))])


def bad_headers(dice: random.Random) -> Case:
    """Lines that are no HTTP, or say what is not so."""
    body = encoded(question("pico", None, 2))
    requests = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: x\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20_000 + b"\r\n",
        http_request(body, Content_Type="text/plain"),
        http_request(body, Content_Type="multipart/form-data"),
        http_request(body, Authorization="Bearer \u00ff"),
        http_request(body, Accept_Encoding="gzip", Content_Encoding="gzip"),
        http_request(body, length=len(body) - 3),
    ]
    return Case("bad headers", [dice.choice(requests)], no_answer=True)


def slow(dice: random.Random) -> Case:
    """Headers or a body that come piece by piece, some never to the end."""
    request = http_request(encoded(question("pico", None, 2)))
    cut = dice.choice([5, len(request) // 2, len(request) - 4])
    pieces = [request[:cut], request[cut : cut + 2], request[cut + 2 :]]
    if dice.random() < 0.5:
        pieces = pieces[:2]  # the server must not wait for the rest for ever
    return Case("slow client", pieces, pause_s=dice.choice([0.05, 0.3]), no_answer=True)


def disconnect(dice: random.Random) -> Case:
    """A client that goes before, while or after it has asked."""
    body = question("pico", dice.choice([None, dice.randrange(1000)]), 300, ignore_eos=True)
    body["stream"] = dice.random() < 0.5
    request = http_request(encoded(body))
    if dice.random() < 0.3:
        return Case("disconnect", [request[: dice.randrange(1, len(request))]], leave="at once")
    return Case("disconnect", [request], leave=dice.choice(["at once", "first piece"]))


def fine(dice: random.Random) -> Case:
    """A request that is in order, in between: it must be answered."""
    body = question("pico", dice.choice([None, dice.randrange(1000)]), dice.randint(1, 9))
    return Case("fine", [http_request(encoded(body))])


KINDS: tuple[tuple[Callable[[random.Random], Case], int], ...] = (
    (malformed_json, 20),
    (deep_json, 3),
    (odd_values, 20),
    (bad_base64, 12),
    (broken_picture, 15),
    (bomb, 5),
    (too_big, 2),
    (bad_headers, 8),
    (slow, 2),
    (disconnect, 5),
    (fine, 8),
)
"""What makes cases, and how often."""


def make_case(dice: random.Random) -> Case:
    """The next case."""
    makers, weights = zip(*KINDS, strict=True)
    maker: Callable[[random.Random], Case] = dice.choices(makers, weights)[0]
    return maker(dice)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()
