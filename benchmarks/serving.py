"""What the server's benchmarks share: a server process, its memory, and a client."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}

# A server with limits that the command line does not offer: short enough to be met in a fuzz run.
_PROGRAM = """
import json, sys
from vistoken.cli.console import quieten
quieten()
from vistoken.api import load
from vistoken.serve.app import create_app
from vistoken.serve.engine import EmbeddedEngine, EngineLimits
from vistoken.serve.server import bind, run_server
from vistoken.serve.settings import ServeSettings
told = json.loads(sys.argv[1])
settings = ServeSettings(**told["settings"])
engine = EmbeddedEngine(told["model"], *load(told["model"], "cpu"), EngineLimits(**told["limits"]))
run_server(create_app(engine, settings), settings, bind("127.0.0.1", told["port"]))
"""


class Server:
    """A server process.

    Args:
        words: Command line after the interpreter.
        port: Where it listens.
        log: Receives what it says.
    """

    def __init__(self, words: Sequence[str], port: int, log: Path) -> None:
        self.port, self.log = port, log
        self._stream = log.open("w")
        self.process = subprocess.Popen(
            [sys.executable, *words],
            stdout=self._stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
        )

    def wait(self, path: str = "/health", seconds: float = 300) -> None:
        """Wait until it answers."""
        end = time.monotonic() + seconds
        while True:
            try:
                if self.get(path)[0] == 200:
                    return
            except OSError:
                pass
            if self.process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"the server did not start:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.2)

    def connect(self, timeout: float = 600) -> http.client.HTTPConnection:
        """A connection of one's own."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of a path."""
        connection = self.connect()
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics, labels included in the name."""
        lines = self.get("/metrics")[1].splitlines()
        pairs = [line.rsplit(" ", 1) for line in lines if line and not line.startswith("#")]
        return {name: float(value) for name, value in pairs}

    def resident_bytes(self) -> int:
        """Memory of the process (Linux)."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = [line for line in text.splitlines() if line.startswith("VmRSS")]
        return int(line.split()[1]) * 1024

    def core_seconds(self) -> float:
        """Seconds of a core that the process took, all threads (Linux)."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def open_files(self) -> int:
        """File descriptors of the process (Linux)."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def files_beyond(self, before: int, seconds: float = 30) -> int:
        """How many more files are open than before, once closed connections had time to go."""
        end = time.monotonic() + seconds
        while (more := self.open_files() - before) > 0 and time.monotonic() < end:
            time.sleep(0.2)
        return more

    def end(self) -> int:
        """Stop it as an operator does; its exit code."""
        self.process.terminate()
        code = self.process.wait(120)
        self._stream.close()
        return code


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def our_server(
    model: str, log: Path, limits: dict[str, Any] | None = None, **settings: Any
) -> Iterator[Server]:
    """Our server with one model."""
    port = free_port()
    told = {"model": model, "port": port, "settings": settings, "limits": limits or {}}
    server = Server(["-c", _PROGRAM, json.dumps(told)], port, log)
    try:
        server.wait()
        yield server
    finally:
        if server.process.poll() is None:
            server.end()


def picture_url(seed: int, height: int = 48, width: int = 64) -> str:
    """A data URL of a picture that no other seed gives."""
    generator = random.Random(seed)
    small = Image.frombytes("RGB", (8, 8), generator.randbytes(192))
    stream = io.BytesIO()
    small.resize((width, height), Image.Resampling.BILINEAR).save(stream, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def question(model: str, seed: int | None, tokens: int, **more: Any) -> dict[str, Any]:
    """A chat request, with a picture if there is a seed for it."""
    content: list[dict[str, Any]] = [{"type": "text", "text": "What is in the picture?"}]
    if seed is not None:
        content.insert(0, {"type": "image_url", "image_url": {"url": picture_url(seed)}})
    message = {"role": "user", "content": content}
    return {"model": model, "messages": [message], "max_tokens": tokens, **more}
