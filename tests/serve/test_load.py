"""`examples/load_test.py`, started as its page in the documentation says, against pico."""

import os
import re
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import uvicorn

from vistoken.serve.app import create_app
from vistoken.serve.settings import ServeSettings

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guides" / "load-test.md"
SPEED = re.compile(r"([\d.]+) requests/s, ([\d.]+) tokens/s")
TIMES = re.compile(r"(first token|answer) +median ([\d.]+) s, 95 % within ([\d.]+) s")


@pytest.fixture(scope="module")
def address(engine):
    """A server with a key, in this process."""
    app = create_app(engine, ServeSettings(api_keys=("open-sesame",)))
    # without the application's own end, which would close an engine that others use
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, ws="none", log_level="warning", lifespan="off"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(30)


def shown_command():
    """The command of the page, word by word."""
    block = re.search(r"```console\n(python examples/load_test\.py.*?)```", PAGE.read_text(), re.S)
    assert block is not None
    return shlex.split(block[1].replace("\\\n", " "))


def run(words, key="open-sesame"):
    return subprocess.run(
        [sys.executable, *words[1:]],
        cwd=ROOT,
        env={**os.environ, "OPENAI_API_KEY": key},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def smaller(words, address, **changes):
    """The command with another address and model, and smaller numbers."""
    words = [words[0], words[1], address, "pico", *words[4:]]
    for name, value in changes.items():
        words[words.index(f"--{name}") + 1] = str(value)
    return words


def test_the_command_of_the_page_measures(address, engine):
    before = engine.stats()
    result = run(smaller(shown_command(), address, clients=3, requests=7, tokens=5))
    assert result.returncode == 0, result.stderr
    speed = SPEED.match(result.stdout)
    assert speed is not None, result.stdout
    assert float(speed[2]) > float(speed[1]) > 0
    times = {name: (float(half), float(most)) for name, half, most in TIMES.findall(result.stdout)}
    assert times.keys() == {"first token", "answer"}
    assert all(0 < half <= most for half, most in times.values())
    assert times["first token"][0] <= times["answer"][0]
    # the engine has written what the clients were promised, and seen the page's picture
    written = engine.stats()["tokens"] - before["tokens"]
    assert 7 <= written <= 7 * 5


def test_one_request_is_a_measurement_too(address):
    result = run(smaller(shown_command(), address, clients=1, requests=1, tokens=2))
    assert result.returncode == 0, result.stderr
    assert len(TIMES.findall(result.stdout)) == 2


def test_a_refusal_is_said_and_ends_it(address):
    words = smaller(shown_command(), address, clients=2, requests=2, tokens=2)
    refused = run(words, key="wrong")
    assert refused.returncode == 1
    assert refused.stderr.startswith("401: ")
    words[3] = "no-such-model"
    refused = run(words)
    assert refused.returncode == 1
    assert "404: " in refused.stderr
    assert "no-such-model" in refused.stderr
