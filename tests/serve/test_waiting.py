"""Clients that wait for an answer, and clients that leave."""

import asyncio
import json
import re

import httpx
import pytest

from vistoken.serve.app import create_app
from vistoken.serve.asking import Listening
from vistoken.serve.engine import Delta, Done
from vistoken.serve.settings import ServeSettings

from .conftest import Scripted, asked

CHAT = "/v1/chat/completions"


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 120))


def scope_of_chat():
    return {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "method": "POST",
        "path": CHAT, "raw_path": CHAT.encode(), "query_string": b"", "root_path": "",
        "headers": [(b"content-type", b"application/json")], "scheme": "http",
        "http_version": "1.1", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
    }  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_is_not_worked_for(stream):
    """The request is cancelled as soon as the connection is gone, whole or streamed."""
    scripted = Scripted()
    app = create_app(scripted, ServeSettings())
    body = json.dumps(asked("hi", stream=stream)).encode()
    sent = []

    async def call():
        gone = asyncio.Event()
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive():
            for message in messages:
                return message
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        served = asyncio.create_task(app(scope_of_chat(), receive, send))
        await asyncio.to_thread(scripted.taken.wait, 30)
        scripted.delivers[0](Delta(0, "a"))
        await asyncio.sleep(0)
        assert not scripted.cancelled.is_set()
        gone.set()
        await asyncio.wait_for(served, 30)

    run(call())
    assert scripted.cancelled.is_set()


def counted(app):
    """Status -> requests, as /metrics tells it."""

    async def call():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return (await http.get("/metrics")).text

    found = re.findall(rf'^vistoken_requests_total{{path="{CHAT}",status="(.*)"}} (.*)$',
                       run(call()), re.MULTILINE)  # fmt: skip
    return {int(status): float(count) for status, count in found}


def test_a_client_that_leaves_while_it_asks_is_not_counted_as_a_fault():
    app = create_app(Scripted(), ServeSettings())
    messages = iter([{"type": "http.request", "body": b"{", "more_body": True},
                     {"type": "http.disconnect"}])  # fmt: skip
    sent = []

    async def call():
        async def receive():
            return next(messages)

        async def send(message):
            sent.append(message)

        await app(scope_of_chat(), receive, send)

    run(call())
    assert sent == []
    assert counted(app) == {499: 1}


def test_a_fault_of_ours_is_counted_as_one():
    app = create_app(Scripted(RuntimeError("no")), ServeSettings())

    async def call():
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return await http.post(CHAT, json=asked("hi"))

    assert run(call()).status_code == 500
    assert counted(app) == {500: 1}


@pytest.mark.parametrize("whole", [True, False])
def test_the_loop_is_woken_at_every_piece_only_for_streams(whole):
    """Whoever waits for the whole answer still gets all of it, in order."""
    pieces = [Delta(0, letter) for letter in "abc"]
    woken, heard = [], []

    async def call():
        loop = asyncio.get_running_loop()
        listening, engine = Listening(loop, whole=whole), Scripted()
        wake = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *a, **k: woken.append(1) or wake(*a, **k)
        listening.put(engine, None)
        for event in [*pieces, Done(engine.usage)]:
            engine.delivers[0](event)
        async for event in listening.events(loop.time() + 30, 30):
            heard.append(event)

    run(call())
    assert heard[:-1] == pieces
    assert isinstance(heard[-1], Done)
    assert len(woken) == (1 if whole else 4)


def test_events_that_come_while_one_listens():
    """From another thread, some while the listener waits and some while it is busy."""
    heard = []

    async def call():
        loop = asyncio.get_running_loop()
        listening, engine = Listening(loop), Scripted()
        listening.put(engine, None)

        def write():
            for number in range(200):
                engine.delivers[0](Delta(0, str(number)))
            engine.delivers[0](Done(engine.usage))

        writing = asyncio.create_task(asyncio.to_thread(write))
        async for event in listening.events(loop.time() + 30, 30):
            heard.append(event)
        await writing

    run(call())
    assert [event.text for event in heard[:-1]] == [str(number) for number in range(200)]
