"""Greedy answers of vLLM are ours, token by token; run by `make test-vllm`."""

from __future__ import annotations

import base64
import contextlib
import gc
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
import torch

# one process: a model that vLLM holds in another could not be freed between tests
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
vllm = pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

from vistoken.api import load  # noqa: E402
from vistoken.serve.vllm.template import template_for_vllm  # noqa: E402
from vistoken.serve.vllm.whole import whole_checkpoint  # noqa: E402

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

NEW = 10
SMALL = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 1024,
    "max_num_seqs": 8,
    "seed": 0,
}


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


@pytest.mark.parametrize(
    "name", ["mlp", "llava-sp", "nano-like", "anyres", "llava-uhd", "inf-llava", "mini-monkey"]
)
def test_greedy_tokens_are_ours(name, tiny, engine, picture, monkeypatch, tmp_path):
    monkeypatch.setenv("VISTOKEN_HOME", str(tmp_path / "home"))
    light = tiny(name).light
    model, processor = load(light, device="cpu", dtype="float32")
    a, b, c = picture(40, 40, 1), picture(90, 50, 2), picture(33, 130, 3)
    asked = [
        ("what is this?", [a]),
        ("what is this?", [b]),
        ("what differs?", [b, c]),
        ("and here?", [c, a]),
        ("hello", []),
    ]
    expected = [ours(model, processor, question(text, *shown)) for text, shown in asked]
    started = engine(whole_checkpoint(str(light), "float32", load))
    conversations = [question(text, *shown, kind="image_pil") for text, shown in asked]
    together = theirs(started, processor, conversations)
    assert together == expected
    alone = [theirs(started, processor, [one])[0] for one in conversations[1:3]]
    assert alone == expected[1:3]
    assert len({tuple(row) for row in expected}) > 3, "every picture gives the same answer"


def test_a_mechanism_is_refused_by_the_plugin_too(recipes, tmp_path):
    from vistoken.models.build import build
    from vistoken.models.checkpoint import save_full

    recipe = recipes["mlp"].model_copy(update={"mechanisms": ["no-op"]})
    model, processor = build(recipe)
    save_full(model, processor, tmp_path / "full")
    with pytest.raises(Exception, match="mechanism part 'no-op'"):
        vllm.LLM(str(tmp_path / "full"), **SMALL)


@pytest.mark.parametrize("parallel", [1, 2])
def test_the_server_answers_as_we_do(parallel, tiny, picture, tmp_path):
    light = tiny("llava-sp").light
    model, processor = load(light, device="cpu", dtype="float32")
    shown = picture(40, 40, 1)
    expected = ours(model, processor, question("what is this?", shown))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "vistoken", "serve", "--engine", "vllm", "--port", str(port)]
    words += ["--model", f"small={light}", "--dtype", "float32", "--enforce-eager"]
    words += ["--max-model-len", "512", "--max-num-seqs", "2"]
    words += ["--tensor-parallel-size", str(parallel)]
    home = {"VISTOKEN_HOME": str(tmp_path / "home"), "VISTOKEN_API_KEYS": "secret"}
    environment = {**os.environ, **home, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with open(tmp_path / "log", "wb") as log:
        server = subprocess.Popen(words, env=environment, stdout=log, stderr=log)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", server, tmp_path / "log")
        buffer = io.BytesIO()
        shown.save(buffer, "PNG")
        url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        answer = ask(port, url)
        text = processor.tokenizer.decode(expected, skip_special_tokens=True)
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
