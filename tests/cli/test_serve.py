"""`vistoken serve` as far as it goes without listening."""

import socket

import pytest

from vistoken.core.errors import MachineError
from vistoken.serve.server import bind


def test_dry_run_says_what_would_be_served(vistoken):
    outcome = vistoken("serve", "-m", "pico", "-m", "other=pico", "--dry-run", "--port", 9)
    assert outcome.code == 0
    assert outcome.out.strip() == "would serve pico, other on http://127.0.0.1:9"


def test_an_open_address_without_a_key_is_warned_of(vistoken, monkeypatch):
    words = ("serve", "-m", "pico", "--dry-run", "--host", "0.0.0.0")
    assert "no API key" in vistoken(*words).err
    monkeypatch.setenv("VISTOKEN_API_KEYS", "one two")
    assert vistoken(*words).err == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-m", "picco"), "pico"),
        (("-m", "pico", "-m", "pico"), "two models"),
        (("-m", "a="), "NAME=PATH"),
        (("--max-rows", "0"), "max-rows"),
    ],
)
def test_wrong_words(vistoken, words, said):
    vistoken("serve", *words, "--dry-run").failed(2, said)


def test_key_files(vistoken, tmp_path):
    empty = tmp_path / "keys"
    empty.write_text("\n")
    words = ("serve", "-m", "pico", "--dry-run", "--api-key-file")
    vistoken(*words, empty).failed(3, "no key")
    vistoken(*words, tmp_path / "none").failed(3, "cannot be read")


def test_without_the_extra(vistoken, monkeypatch):
    from vistoken.cli import serve

    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "uvicorn" else object())
    vistoken("serve", "-m", "pico", "--dry-run").failed(5, "uvicorn", "vistoken[serve]")


def test_a_port_that_is_taken_is_a_fault_of_the_machine_found_before_models_are_loaded():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(MachineError, match=f"127.0.0.1:{port}"):
            bind("127.0.0.1", port)
    with bind("127.0.0.1", 0) as free:
        assert free.getsockname()[1] > 0
    with pytest.raises(MachineError, match="nowhere.invalid"):
        bind("nowhere.invalid", 1)
