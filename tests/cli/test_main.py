"""The program: its help, its exit codes, and what it says when something is wrong."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vistoken.cli import listing, main
from vistoken.core.errors import MachineError

VERBS = (
    (),
    ("chat",),
    ("train",),
    ("merge",),
    ("convert",),
    ("convert", "llava-sp"),
    ("convert", "llava-hf"),
    ("convert", "mini-monkey"),
    ("inspect",),
    ("inspect", "model"),
    ("inspect", "prompt"),
    ("inspect", "tokens"),
    ("inspect", "checkpoint"),
    ("viz",),
    ("viz", "views"),
    ("list",),
    ("doctor",),
    ("data",),
    ("data", "make"),
    ("data", "check"),
    ("data", "convert"),
    ("data", "preview"),
    ("data", "fetch"),
)
HEAVY = ("torch", "transformers", "numpy", "PIL", "peft")


def program(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "vistoken", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        stdin=subprocess.DEVNULL,
        **options,
    )


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: " ".join(verb) or "vistoken")
def test_every_verb_explains_itself(vistoken, verb):
    outcome = vistoken(*verb, "--help")
    assert outcome.code == 0
    assert "Usage: vistoken" in outcome.out
    assert outcome.err == ""


def test_help_imports_nothing_heavy():
    script = (
        "import sys\nfrom vistoken.cli.main import run\n"
        f"for verb in {VERBS!r}: assert run([*verb, '--help']) == 0\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip().splitlines()[-1] == "HEAVY []"


def test_installed_command_explains_itself_quickly():
    command = Path(sys.executable).parent / "vistoken"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([command, "--help"], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # processor time, which a busy machine does not stretch as it stretches the wall's clock
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert "chat" in done.stdout
    assert used < 1.5


def test_version(vistoken):
    from vistoken import __version__

    assert vistoken("--version").out == f"vistoken {__version__}\n"


@pytest.mark.parametrize("group", [(), ("inspect",), ("data",), ("convert",)])
def test_group_without_verb_shows_its_help(vistoken, group):
    outcome = vistoken(*group)
    assert outcome.code == 2
    assert "Usage: vistoken" in outcome.out
    assert outcome.err == ""


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (("chta",), "'chat'"),
        (("inspect", "token"), "'tokens'"),
        (("data", "mak"), "'make'"),
        (("list", "recipez"), "'recipes'"),
        (("data", "fetch", "nanno"), "'nano'"),
        (("chat", "--model", "pcio", "Hi"), "'pico'"),
        (("inspect", "model", "llava-sp-croping-7b"), "'llava-sp-cropping-7b'"),
        (("train", "nanoo"), "'nano'"),
        (("inspect", "prompt", "--model", "pico", "--template", "chatlm", "Hi"), "'chatml'"),
    ],
)
def test_misspelt_names_get_suggestions(vistoken, arguments, near):
    vistoken(*arguments).failed(2, near)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("chat", "--nonsense"), ["--nonsense"]),
        (("chat", "-m", "pico", "--max-new-tokens", "0", "Hi"), ["--max-new-tokens"]),
        (("chat", "-m", "pico", "--device", "tpu", "Hi"), ["tpu", "cpu"]),
        (("chat", "-m", "pico", "--dtype", "int3", "Hi"), ["int3", "float32"]),
        (("chat", "-m", "pico", "--quantization", "int3", "Hi"), ["int3", "int8"]),
        (("chat", "-m", "pico", "--token-budget", "9", "Hi"), ["--token-budget", "pico"]),
        (("chat", "-m", "pico", "first", "second"), ["one question", "'second'"]),
        (("chat", "-m", "pico", "--json"), ["--json"]),
        (("inspect", "model", "pico", "--image-size", "0x3"), ["--image-size", "480x640"]),
        (("inspect", "model"), ["argument", "inspect model --help"]),
        (("train", "nano"), ["--data"]),
        (("train", "nowhere.yaml"), ["nowhere.yaml", "does not exist"]),
        (("data", "make", "out", "--train", "0", "--val", "0"), ["empty"]),
    ],
)
def test_usage_errors(vistoken, arguments, words):
    vistoken(*arguments).failed(2, *words)


@pytest.mark.slow
def test_process_reports_one_line_and_its_code(tmp_path):
    done = program("chat", "-m", "pico", tmp_path / "nothing.png", "Hi")
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_fault_of_ours_is_named_as_one(vistoken, monkeypatch):
    def broken():
        raise RuntimeError("the floor is lava")

    monkeypatch.setitem(listing._ROWS, "towers", broken)
    line = vistoken("list", "towers").failed(1, "bug", "RuntimeError: the floor is lava")
    assert "--debug" in line


def test_debug_shows_where_an_error_came_from(vistoken, monkeypatch):
    def broken():
        raise RuntimeError("the floor is lava")

    monkeypatch.setitem(listing._ROWS, "towers", broken)
    outcome = vistoken("--debug", "list", "towers")
    assert outcome.code == 1
    assert "Traceback" in outcome.err
    assert "in broken" in outcome.err


def test_errors_carry_their_code(vistoken, monkeypatch):
    def missing():
        raise MachineError("the machine has no wheels; add some")

    monkeypatch.setitem(listing._ROWS, "towers", missing)
    vistoken("list", "towers").failed(5, "wheels")


def test_interrupt_is_quiet(vistoken, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setitem(listing._ROWS, "towers", interrupted)
    outcome = vistoken("list", "towers")
    assert outcome.code == main.INTERRUPTED == 130
    assert outcome.err.strip() == ""


@pytest.mark.slow
def test_interrupted_process_is_quiet():
    process = subprocess.Popen(
        [sys.executable, "-m", "vistoken", "chat", "--model", "pico"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        # a test run in the background may have handed down an ignored interrupt
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    assert process.stderr is not None
    assert process.stderr.readline().startswith("/image PATH"), time.monotonic() < deadline
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err


def test_closed_pipe_is_quiet():
    done = subprocess.run(
        f"'{sys.executable}' -m vistoken list parts | head -n 1",
        shell=True,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stderr == ""
