"""The page behind its browser: talks, drawings, what is refused, what it loads."""

from __future__ import annotations

import asyncio
import re

import httpx
import pytest

from vistoken.core.errors import DataError
from vistoken.serve.app import create_app
from vistoken.serve.page import page_for
from vistoken.serve.page_guard import POLICY, names_address
from vistoken.serve.page_talk import CHOICES, Talk, Talking, frame, usage_words
from vistoken.serve.settings import ServeSettings


@pytest.fixture
def talking(engine):
    return Talking({"pico": engine}, 1_000_000)


@pytest.fixture
def file(picture, tmp_path):
    path = tmp_path / "a.png"
    picture(40, 56).save(path)
    return str(path)


@pytest.fixture(scope="session")
def app(engine):
    settings = ServeSettings(api_keys=("secret",))
    engines = {"pico": engine}
    return create_app(engines, settings, extend=page_for(engines, settings))


def request(app, key="secret"):
    auth = httpx.BasicAuth("", key) if key else None
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test", auth=auth)


def test_a_talk_streams_and_goes_on(talking, file):
    talk = talking.open(file)
    told = list(talking.ask("pico", talk, "What is it?", 5))
    assert len(told) > 1
    assert [one.usage is None for one in told] == [True] * (len(told) - 1) + [False]
    assert told[-1].usage.visual_tokens == 18
    after = told[-1].talk
    assert len(after.last.ids) == told[-1].usage.completion_tokens
    assert after.messages[-1]["role"] == "assistant"
    again = list(talking.ask("pico", after, "And now?", 3))[-1]
    assert again.usage.visual_tokens == 18, "the picture is in the first message, once"
    assert len(again.talk.messages) == 4
    words = usage_words(again.usage)
    assert "18 visual" in words
    assert "ms" in words


def test_drawings_of_every_kind(talking, file):
    talk = talking.open(file)
    talk = list(talking.ask("pico", talk, "What is it?", 4))[-1].talk
    talk = list(talking.ask("pico", talk, "And now?", 4))[-1].talk
    for choice in CHOICES:
        drawn = talking.attention("pico", talk, choice)
        assert drawn.startswith('<iframe class="drawing"')
        assert 'sandbox="allow-scripts"' in drawn
    assert "And now?" in drawn
    assert "Visual tokens of pico" in talking.tokens("pico", talk)


class Watched:
    """An engine that knows what was asked of it."""

    def __init__(self, engine):
        self._engine, self.called = engine, set()

    def __getattr__(self, name):
        self.called.add(name)
        return getattr(self._engine, name)


def test_the_chosen_model_answers_and_is_drawn(engine, file):
    first, second = Watched(engine), Watched(engine)
    talking = Talking({"first": first, "second": second}, 1_000_000)
    talk = list(talking.ask("second", talking.open(file), "What is it?", 2))[-1].talk
    assert "Visual tokens of" in talking.tokens("second", talk)
    assert {"submit", "run"} <= second.called
    assert first.called == set()


def test_the_page_offers_every_model(engine):
    engines = {"first": engine, "second": engine}
    app = create_app(engines, extend=page_for(engines))

    async def config():
        async with request(app) as client:
            return (await client.get("/config")).json()

    components = [one["props"] for one in asyncio.run(config())["components"]]
    (model,) = [props for props in components if props.get("elem_id") == "model"]
    assert [value for _, value in model["choices"]] == ["first", "second"]
    assert model["value"] == "first"


def test_talks_without_a_picture(talking):
    assert talking.open(None).picture is None
    told = list(talking.ask("pico", Talk(), "Who are you?", 3))[-1]
    assert told.usage.visual_tokens == 0
    assert "Show a picture" in talking.attention("pico", told.talk, "mean of all layers")
    assert "Show a picture" in talking.tokens("pico", told.talk)


def test_pictures_are_checked(engine, file, tmp_path):
    with pytest.raises(DataError, match="pixels"):
        Talking({"pico": engine}, 100).open(file)
    broken = tmp_path / "b.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(DataError, match="the picture"):
        Talking({"pico": engine}, 1_000_000).open(str(broken))


def test_a_frame_cannot_be_left():
    inner = frame('<p title="x">"</iframe><script>', "a")
    assert "</iframe><script>" not in inner
    assert inner.count("<iframe") == 1


def test_page_and_interface_live_in_one_process(app):
    async def check():
        async with request(app) as client:
            page = await client.get("/")
            assert page.status_code == 200
            assert page.headers["content-security-policy"] == POLICY
            loaded = re.findall(r"""(?:<script[^>]+src|<link[^>]+href)=["']([^"']+)""", page.text)
            elsewhere = [u for u in loaded if u.startswith(("http", "//")) and "://test" not in u]
            assert elsewhere == []
            assert (await client.get("/v1/models")).json()["data"][0]["id"] == "pico"
            assert (await client.get("/health")).json() == {"status": "ok"}
            config = (await client.get("/config")).json()
            assert config["analytics_enabled"] is False
        async with request(app, None) as stranger:
            refused = await stranger.get("/")
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"].startswith("Basic")

    asyncio.run(check())


def test_files_by_address_are_not_fetched(app):
    body = {"data": [{"path": "http://127.0.0.1:9/x.png", "meta": {"_type": "gradio.FileData"}}]}

    async def check():
        async with request(app) as client:
            answer = await client.post("/gradio_api/queue/join", json=body)
        assert answer.status_code == 400
        assert "upload it" in answer.text

    asyncio.run(check())


@pytest.mark.parametrize(
    ("body", "refused"),
    [
        (b'{"data": [{"path": "cache/a.png", "url": "http://here/a.png"}]}', False),
        (b'{"data": ["look at http://a.b/c"]}', False),
        (b'{"data": [{"a": [{"path": "https://a.b/c.png"}]}]}', True),
        (b'{"data": [{"path": "file:///etc/passwd"}]}', True),
        (b'{"data": [{"path": "//a.b/c.png"}]}', True),
        (b"not json", True),
        (b"", False),
    ],
)
def test_what_names_an_address(body, refused):
    assert names_address(body) is refused
