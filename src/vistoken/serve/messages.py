"""From the wire's messages to the house's: what is asked for, and what cannot be had."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vistoken.serve.engine.protocol import Sampling
from vistoken.serve.errors import RequestError
from vistoken.serve.schema import ChatRequest, ImagePart, Message, VideoPart
from vistoken.serve.settings import ServeSettings


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that makes sense.

    Args:
        messages: In the house's form, pictures as ``{"type": "image"}``.
        sources: URL of each picture, in order.
        sampling: How to write.
    """

    messages: list[dict[str, Any]]
    sources: list[str]
    sampling: Sampling


def read_request(request: ChatRequest, settings: ServeSettings) -> Asked:
    """Check a request beyond its schema.

    Raises:
        RequestError: It asks for something that this server does not do.
    """
    _refuse_unsupported(request)
    if len(request.messages) > settings.max_messages:
        raise RequestError(
            f"{len(request.messages)} messages are more than the {settings.max_messages} allowed",
            param="messages",
        )
    sources: list[str] = []
    messages = [
        _read_message(number, message, sources) for number, message in enumerate(request.messages)
    ]
    if len(sources) > settings.max_images:
        raise RequestError(
            f"{len(sources)} pictures are more than the {settings.max_images} allowed in one "
            "request",
            code="too_many_images",
            param="messages",
        )
    return Asked(messages, sources, _read_sampling(request, settings))


def _read_message(number: int, message: Message, sources: list[str]) -> dict[str, Any]:
    where = f"messages.{number}"
    role = "system" if message.role == "developer" else message.role
    parts = message.content
    if isinstance(parts, str):
        return {"role": role, "content": [{"type": "text", "text": _text(parts, where)}]}
    content: list[dict[str, Any]] = []
    for place, part in enumerate(parts):
        at = f"{where}.content.{place}"
        if isinstance(part, VideoPart):
            raise RequestError(
                "this model reads no video; send single frames as image_url parts",
                code="video_not_supported",
                param=at,
            )
        if isinstance(part, ImagePart):
            if role != "user":
                raise RequestError(f"a {role} message holds a picture; put it into a user message",
                                   param=at)  # fmt: skip
            sources.append(part.image_url.url)
            content.append({"type": "image"})
        else:
            content.append({"type": "text", "text": _text(part.text, at)})
    if not content:
        raise RequestError("the content of a message is an empty list; write a text", param=where)
    return {"role": role, "content": content}


def _text(text: str, where: str) -> str:
    """The text, if it is one: half of a surrogate pair passes through JSON but is no character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"the text is not valid Unicode ({error.reason}); send whole characters", param=where
        ) from error
    return text


def _read_sampling(request: ChatRequest, settings: ServeSettings) -> Sampling:
    n = request.n or 1
    if n > settings.max_choices:
        raise RequestError(f"n is {n}, more than the {settings.max_choices} allowed", param="n")
    stop = request.stop or ()
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    for text in stops:
        _text(text, "stop")
    given = [v for v in (request.max_completion_tokens, request.max_tokens) if v is not None]
    temperature = request.temperature
    return Sampling(
        max_tokens=min(given) if given else None,
        temperature=settings.default_temperature if temperature is None else temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        seed=request.seed,
        stop=stops,
        n=n,
        ignore_eos=request.ignore_eos,
    )


def _refuse_unsupported(request: ChatRequest) -> None:
    if request.token_budget is not None:
        raise RequestError(
            "no part of this model can choose how many visual tokens it makes; leave token_budget "
            "out",
            code="token_budget_not_supported",
            param="token_budget",
        )
    if request.stream_options is not None and not request.stream:
        raise RequestError(
            "stream_options is only for streams; set stream, or leave it out",
            param="stream_options",
        )
    neutral: dict[str, Any] = {
        "frequency_penalty": 0,
        "presence_penalty": 0,
        "logit_bias": {},
        "logprobs": False,
        "top_logprobs": 0,
        "response_format": {"type": "text"},
        "tools": [],
        "modalities": ["text"],
    }
    for name, value in neutral.items():
        if getattr(request, name) not in (None, value):
            raise RequestError(
                f"{name} is not supported here; leave it out", code="unsupported", param=name
            )
    if request.tool_choice not in (None, "none", "auto"):
        raise RequestError(
            "tool_choice is not supported here; leave it out", code="unsupported",
            param="tool_choice",
        )  # fmt: skip
