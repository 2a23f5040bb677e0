"""A pico engine, an application in front of it, and what one asks them."""

import base64
import io
import threading

import httpx
import pytest
import torch

from vistoken.serve.app import create_app
from vistoken.serve.engine import (
    Conversation,
    Delta,
    Done,
    EmbeddedEngine,
    EngineLimits,
    Failed,
    Picture,
    Sampling,
    Usage,
)
from vistoken.serve.settings import ServeSettings


def build_pico():
    """A pico of one's own: weights are seeded, so it equals the session's."""
    from vistoken.models.build import build
    from vistoken.models.recipe import load_recipe

    model, processor = build(load_recipe("pico"))
    return model.eval(), processor


@pytest.fixture(scope="session")
def engine():
    """An engine that nobody else's settings concern."""
    engine = EmbeddedEngine("pico", *build_pico(), EngineLimits(max_rows=4, prefill_chunk=16))
    yield engine
    engine.close()


@pytest.fixture
def client(engine):
    """Make a client of an application in this process: settings -> httpx.AsyncClient."""

    def make(app_engine=engine, fetch=None, **settings):
        app = create_app(app_engine, ServeSettings(**settings), fetch=fetch)
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://test")

    return make


@pytest.fixture
def shown(picture):
    """Make a picture for an engine: (height, width, seed)."""

    def make(height=40, width=56, seed=0):
        return Picture(picture(height, width, seed), f"{height}x{width}/{seed}")

    return make


def data_url(image, kind="PNG"):
    stream = io.BytesIO()
    image.save(stream, kind)
    encoded = base64.b64encode(stream.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{encoded}"


def image_part(url):
    return {"type": "image_url", "image_url": {"url": url}}


def asked(*content, **more):
    """Body of a chat request: one user message of texts and parts."""
    parts = [{"type": "text", "text": c} if isinstance(c, str) else c for c in content]
    message = {"role": "user", "content": parts}
    return {"model": "pico", "max_tokens": 4, "messages": [message], **more}


def conversation(text, *pictures, **sampling):
    content = [*({"type": "image"} for _ in pictures), {"type": "text", "text": text}]
    return Conversation(
        [{"role": "user", "content": content}], list(pictures), Sampling(**sampling)
    )


class Scripted:
    """An engine that says what a test tells it to, when it tells it to."""

    name = "pico"

    def __init__(self, refuse=None):
        self.refuse = refuse
        self.delivers, self.cancelled = [], threading.Event()
        self.taken = threading.Event()
        self.usage = Usage(prompt_tokens=1, completion_tokens=1)

    def submit(self, conversation, deliver):
        if self.refuse is not None:
            raise self.refuse
        self.delivers.append(deliver)
        self.taken.set()
        return self

    def cancel(self):
        self.cancelled.set()

    def describe(self):
        return {}

    def stats(self):
        return {}

    def close(self):
        pass


@torch.inference_mode()
def generated(model, processor, wanted, tokens, **options):
    """Tokens that `generate` writes to a conversation, alone."""
    content = [
        {"type": "image", "image": p.image} if part["type"] == "image" else part
        for part, p in _with_pictures(wanted)
    ]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    out = model.generate(**inputs, max_new_tokens=tokens, do_sample=False, **options)
    return out[0, inputs["input_ids"].shape[1] :].tolist()


def asked_together(engine, questions):
    """Tokens of every answer, all questions waiting at once."""
    answers = [[] for _ in questions]
    done = [threading.Event() for _ in questions]

    def listener(number):
        def deliver(event):
            answers[number].append(event)
            if isinstance(event, (Done, Failed)):
                done[number].set()

        return deliver

    for number, question in enumerate(questions):
        engine.submit(question, listener(number))
    assert all(event.wait(60) for event in done)
    assert not [e for events in answers for e in events if isinstance(e, Failed)]
    return [
        [token for event in events if isinstance(event, Delta) for token in event.tokens]
        for events in answers
    ]


def _with_pictures(wanted):
    pictures = iter(wanted.pictures)
    for part in wanted.messages[0]["content"]:
        yield part, (next(pictures) if part["type"] == "image" else None)
