"""The HTTP side in this process: answers, streams, refusals."""

import asyncio
import json
import logging

import httpx
import openai
import pytest

from vistoken.serve.app import create_app
from vistoken.serve.engine import Done, EmbeddedEngine, EngineLimits
from vistoken.serve.errors import RequestError
from vistoken.serve.settings import ServeSettings

from .conftest import (
    Scripted,
    asked,
    build_pico,
    conversation,
    data_url,
    generated,
    image_part,
)

CHAT = "/v1/chat/completions"


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 120))


def post(client, body, **more):
    async def call():
        async with client:
            if isinstance(body, bytes):
                return await client.post(CHAT, content=body, **more)
            return await client.post(CHAT, json=body, **more)

    return run(call())


def refused(response, status, *words, code=None):
    """The one sentence of a refusal in OpenAI's shape."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    for word in words:
        assert word in error["message"]
    if code is not None:
        assert error["code"] == code
    assert "Traceback" not in response.text
    return error


def events_of(text):
    lines = [line for line in text.split("\n\n") if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_an_answer_is_what_generate_writes(client, pico, picture, shown):
    image = picture(40, 56)
    response = post(client(), asked(image_part(data_url(image)), "What?", max_tokens=7))
    assert response.status_code == 200
    said = response.json()
    right = generated(*pico, conversation("What?", shown()), 7)
    text = pico[1].tokenizer.decode(right, skip_special_tokens=True)
    assert said["choices"][0]["message"] == {"role": "assistant", "content": text, "refusal": None}
    assert said["usage"]["completion_tokens"] == len(right)
    assert said["usage"]["prompt_tokens_details"]["image_tokens"] == 16 + 2


def test_a_stream_says_the_same_as_a_whole_answer(client):
    body = asked("What?", max_tokens=12, n=2, temperature=1.2, seed=3)
    whole = post(client(), body).json()
    streamed = post(client(), {**body, "stream": True, "stream_options": {"include_usage": True}})
    assert streamed.headers["content-type"].startswith("text/event-stream")
    chunks = events_of(streamed.text)
    texts, reasons = ["", ""], [None, None]
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["delta"].get("content") or ""
            reasons[choice["index"]] = choice["finish_reason"] or reasons[choice["index"]]
    assert texts == [choice["message"]["content"] for choice in whole["choices"]]
    assert reasons == [choice["finish_reason"] for choice in whole["choices"]]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == whole["usage"]
    plain = events_of(post(client(), {**body, "stream": True}).text)
    assert not any("usage" in chunk for chunk in plain)


def test_the_official_client(engine, picture):
    app = create_app(engine, ServeSettings(api_keys=("secret",)))
    http = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test")

    async def talk():
        ours = openai.AsyncOpenAI(
            base_url="http://test/v1", api_key="secret", http_client=http, max_retries=0
        )
        content = asked(image_part(data_url(picture(30, 30))), "What?")["messages"]
        answer = await ours.chat.completions.create(
            model="pico", messages=content, max_completion_tokens=5, temperature=0, user="me"
        )
        stream = await ours.chat.completions.create(
            model="pico",
            messages=content,
            max_tokens=5,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        models = [model.id async for model in ours.models.list()]
        with pytest.raises(openai.NotFoundError, match="no model"):
            await ours.chat.completions.create(model="other", messages=content)
        with pytest.raises(openai.BadRequestError) as caught:
            await ours.chat.completions.create(model="pico", messages=content, logprobs=True)
        other = openai.AsyncOpenAI(
            base_url="http://test/v1", api_key="guess", http_client=http, max_retries=0
        )
        with pytest.raises(openai.AuthenticationError):
            await other.models.list()
        return answer, chunks, models, caught.value

    answer, chunks, models, refusal = run(talk())
    text = answer.choices[0].message.content
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    streamed = chunks[-1].usage
    # the second request finds the picture's tokens in the cache
    assert (streamed.prompt_tokens, streamed.completion_tokens, streamed.total_tokens) == (
        answer.usage.prompt_tokens,
        answer.usage.completion_tokens,
        answer.usage.total_tokens,
    )
    assert answer.usage.completion_tokens <= 5
    assert models == ["pico"]
    assert refusal.param == "logprobs"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"foo": 1}, ("foo", "unknown")),
        ({"messages": []}, ("messages",)),
        ({"messages": "hi"}, ("messages",)),
        ({"messages": [{"role": "tool", "content": "x"}]}, ("role",)),
        ({"messages": [{"role": "user", "content": []}]}, ("empty list",)),
        ({"messages": [{"role": "assistant", "content": "x"}] * 300}, ("256",)),
        ({"temperature": 2.1}, ("temperature",)),
        ({"top_p": 0}, ("top_p",)),
        ({"n": 0}, ("n",)),
        ({"n": 9}, ("9", "8")),
        ({"n": 5}, ("at most 4",)),
        ({"max_tokens": 0}, ("max_tokens",)),
        ({"max_tokens": 100_000}, ("4096",)),
        ({"stop": ["a"] * 5}, ("stop",)),
        ({"stop": ""}, ("stop",)),
        ({"seed": 2**70}, ("seed",)),
        ({"token_budget": 9}, ("visual tokens",)),
        ({"logprobs": True}, ("logprobs", "not supported")),
        ({"frequency_penalty": 0.5}, ("frequency_penalty",)),
        ({"tools": [{"type": "function"}]}, ("tools",)),
        ({"response_format": {"type": "json_object"}}, ("response_format",)),
        ({"stream_options": {"include_usage": True}}, ("stream_options",)),
    ],
)
def test_what_is_not_understood_is_refused_by_name(client, change, words):
    refused(post(client(), {**asked("hi"), **change}), 400, *words)


@pytest.mark.parametrize(
    "change",
    [
        {"user": "me", "metadata": {"a": "b"}, "store": False},
        {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "logprobs": False},
        {"response_format": {"type": "text"}, "tools": [], "tool_choice": "none"},
        {"messages": [{"role": "developer", "content": "Be brief."},
                      {"role": "user", "content": "hi", "name": "bob"}]},
    ],
)  # fmt: skip
def test_what_changes_nothing_is_accepted(client, change):
    assert post(client(), {**asked("hi"), **change}).status_code == 200


def test_video_is_part_of_the_schema_and_refused_with_the_reason(client):
    part = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}
    refused(post(client(), asked(part, "What?")), 400, "video", code="video_not_supported")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 100_000,
     b'{"model":' + b"9" * 6000 + b"}", b'{"model": NaN}',
     b'{"model": "pico", "messages": [{"role": "user", "content": "\\ud800"}]}'],
)  # fmt: skip
def test_a_body_that_is_no_request(client, body):
    response = post(client(), body, headers={"content-type": "application/json"})
    refused(response, 400)


def test_a_body_that_is_not_said_to_be_json_is_refused(client):
    """A page elsewhere can make a browser send text/plain without asking; it gets nothing."""
    body = json.dumps(asked("hi")).encode()
    response = post(client(), body, headers={"content-type": "text/plain"})
    assert 400 <= response.status_code < 500
    assert "error" in response.json()


def test_pictures_of_other_kinds_than_the_user(client, picture):
    body = asked("hi")
    body["messages"].insert(0, {"role": "system", "content": [image_part(data_url(picture(9, 9)))]})
    refused(post(client(), body), 400, "system", "user message")


def test_unknown_paths_and_methods_have_the_same_shape(client):
    async def call():
        async with client() as http:
            return await http.get("/v1/nothing"), await http.get(CHAT)

    nothing, method = run(call())
    refused(nothing, 404)
    refused(method, 405)


def test_models_health_and_metrics(client):
    async def call():
        async with client() as http:
            await http.post(CHAT, json=asked("hi", max_tokens=2, ignore_eos=True))
            await http.get("/not/there")
            return [await http.get(path) for path in ("/v1/models", "/health", "/metrics")]

    models, health, metrics = run(call())
    (card,) = models.json()["data"]
    assert card["id"] == "pico"
    assert card["capabilities"] == {
        "images": True,
        "video": False,
        "token_budget": False,
        "batching": "shared",
        "batching_reason": None,
        "max_context": 4096,
    }
    assert health.json() == {"status": "ok"}
    text = metrics.text
    assert 'vistoken_requests_total{path="/v1/chat/completions",status="200"} 1.0' in text
    assert 'vistoken_requests_total{path="other",status="404"} 1.0' in text
    assert "vistoken_completion_tokens_total 2.0" in text
    assert "vistoken_first_token_seconds_count 1.0" in text
    assert 'vistoken_engine_waiting{model="pico"} 0.0' in text


def test_keys(client, caplog):
    caplog.set_level(logging.DEBUG)

    async def call():
        async with client(api_keys=("first-key", "second-key")) as http:
            results = []
            for headers in (
                {},
                {"Authorization": "Bearer third-key"},
                {"Authorization": "Bearer first-key "},
                {"Authorization": "Bearer second-key"},
                {"Authorization": "first-key"},
                {"Authorization": "Basic bWU6Zmlyc3Qta2V5"},  # me:first-key
                {"Authorization": "Basic ###"},
                {"Authorization": "Bearer \xff".encode("latin-1")},
            ):
                results.append(await http.get("/v1/models", headers=headers))
            others = [await http.get(path) for path in ("/health", "/metrics", "/openapi.json")]
            return results, others

    results, others = run(call())
    assert [r.status_code for r in results] == [401, 401, 200, 200, 401, 200, 401, 401]
    refused(results[0], 401, "API key", code="invalid_api_key")
    assert results[0].headers["www-authenticate"] == "Bearer"
    assert [r.status_code for r in others] == [200, 401, 401]
    logged = caplog.text
    assert not any(key in logged for key in ("first-key", "second-key", "third-key"))
    assert "first-key" not in repr(ServeSettings(api_keys=("first-key",)))


def test_keys_are_compared_in_constant_time(monkeypatch):
    """Every known key is compared, by hmac, whichever fits."""
    from pydantic import SecretStr

    from vistoken.serve import gate

    compared = []
    honest = gate.hmac.compare_digest
    monkeypatch.setattr(
        gate.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or honest(a, b)
    )
    keys = gate.Keys([SecretStr("a"), SecretStr("b"), SecretStr("c")])
    assert keys.accept("a")
    assert not keys.accept("d" * 1000)
    assert len(compared) == 6
    assert all(len(a) == len(b) == 32 for a, b in compared)


def test_a_body_that_is_too_long_is_not_read(client):
    response = post(client(max_body_bytes=1000), asked("x" * 2000))
    refused(response, 413, "1,000 bytes", code="body_too_large")

    async def drip():
        for _ in range(100):
            yield b" " * 100

    async def call():
        async with client(max_body_bytes=1000) as http:
            return await http.post(CHAT, content=drip())

    refused(run(call()), 413, "1,000 bytes")


def test_a_body_that_comes_too_slowly(client):
    async def slow():
        yield b"{"
        await asyncio.sleep(30)
        yield b"}"

    async def call():
        async with client(body_timeout_s=0.05) as http:
            return await http.post(CHAT, content=slow())

    refused(run(call()), 408, code="body_timeout")


def test_a_busy_server_says_when_to_come_back(client):
    engine = Scripted(RequestError("full", 429, "queue_full", retry_after=7))
    response = post(client(engine), asked("hi"))
    refused(response, 429, code="queue_full")
    assert response.headers["retry-after"] == "7"


def test_too_many_open_requests(client):
    engine = Scripted()

    async def call():
        async with client(engine, max_open_requests=1) as http:
            first = asyncio.create_task(http.post(CHAT, json=asked("hi")))
            await asyncio.to_thread(engine.taken.wait, 30)
            second = await http.post(CHAT, json=asked("hi"))
            engine.delivers[0](Done(engine.usage))
            return await first, second

    first, second = run(call())
    assert first.status_code == 200
    refused(second, 429, code="too_many_requests")
    assert int(second.headers["retry-after"]) >= 1


def test_an_answer_that_takes_too_long(client):
    engine = Scripted()
    refused(post(client(engine, answer_timeout_s=0.1), asked("hi")), 504, code="timeout")
    assert engine.cancelled.is_set()
    engine = Scripted()
    body = asked("hi", stream=True)
    streamed = post(client(engine, answer_timeout_s=0.2, keep_alive_s=0.05), body)
    assert streamed.status_code == 200
    assert ": still at it" in streamed.text
    assert events_of(streamed.text)[-1]["error"]["code"] == "timeout"
    assert engine.cancelled.is_set()


def test_a_fault_of_ours_is_not_explained_to_strangers(client, caplog):
    engine = Scripted(RuntimeError("password of the database"))
    response = post(client(engine), asked("hi"))
    refused(response, 500, code="internal_error")
    assert "password" not in response.text
    assert "password of the database" in caplog.text


def test_errors_of_one_request_do_not_touch_others(client, engine):
    good, bad = asked("What?", max_tokens=9), asked("hi", n=77)

    async def call():
        async with client() as http:
            alone = await http.post(CHAT, json=good)
            bodies = [good, bad, good, {}, good, asked(image_part("data:image/png;base64,AAAA"))]
            together = await asyncio.gather(*(http.post(CHAT, json=body) for body in bodies))
            return alone, together

    alone, together = run(call())
    assert [r.status_code for r in together] == [200, 400, 200, 400, 200, 400]
    answers = {r.json()["choices"][0]["message"]["content"] for r in together[::2]}
    assert answers == {alone.json()["choices"][0]["message"]["content"]}


def test_several_models(client):
    model, processor = build_pico()
    second = EmbeddedEngine("second", model, processor, EngineLimits(max_rows=2))
    try:
        with_two = client({"second": second, "third": Scripted()})
        assert post(with_two, asked("hi", model="second")).status_code == 200
        refused(post(client({"second": second}), asked("hi")), 404, "pico", code="model_not_found")
    finally:
        second.close()
