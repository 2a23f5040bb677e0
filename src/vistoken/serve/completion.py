"""Answers in the form of OpenAI's chat completions, whole or as a stream of chunks."""

from __future__ import annotations

import json
import secrets
import time
from typing import Any

from vistoken import __version__
from vistoken.serve.engine.protocol import Delta, Usage
from vistoken.serve.schema import (
    AnswerMessage,
    ChatCompletion,
    Choice,
    PromptDetails,
    Timings,
    UsageReport,
)


class Completion:
    """One request's answers.

    Args:
        model: Name of the model, as the client called it.
        n: Number of answers.
    """

    def __init__(self, model: str, n: int) -> None:
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._model = model
        self._texts = [""] * n
        self._reasons: list[Any] = ["stop"] * n

    def take(self, delta: Delta) -> None:
        """Add a piece of an answer."""
        self._texts[delta.choice] += delta.text
        if delta.finish is not None:
            self._reasons[delta.choice] = delta.finish

    def whole(self, usage: Usage) -> ChatCompletion:
        """The complete answer."""
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._model,
            system_fingerprint=f"vistoken-{__version__}",
            choices=[
                Choice(index=number, message=AnswerMessage(content=text), finish_reason=reason)
                for number, (text, reason) in enumerate(
                    zip(self._texts, self._reasons, strict=True)
                )
            ],
            usage=report(usage),
            timings=timings(usage),
        )

    def opening(self, choice: int) -> str:
        """The first chunk of an answer: who speaks."""
        return self._chunk([_piece(choice, {"role": "assistant", "content": ""})])

    def chunk(self, delta: Delta) -> list[str]:
        """Chunks of a piece: its text, if any, and its end, if it is the last."""
        chunks = []
        if delta.text:
            chunks.append(self._chunk([_piece(delta.choice, {"content": delta.text})]))
        if delta.finish is not None:
            chunks.append(self._chunk([_piece(delta.choice, {}, delta.finish)]))
        return chunks

    def closing(self, usage: Usage) -> str:
        """The chunk with the usage, for clients that asked for it."""
        said = {
            "usage": report(usage).model_dump(),
            "timings": timings(usage).model_dump(),
        }
        return self._chunk([], **said)

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> str:
        values = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
            "choices": choices,
            **more,
        }
        return json.dumps(values, ensure_ascii=False, separators=(",", ":"))


def report(usage: Usage) -> UsageReport:
    """Tokens of a request as the client reads them."""
    return UsageReport(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        prompt_tokens_details=PromptDetails(
            image_tokens=usage.visual_tokens, cached_pictures=usage.cached_pictures
        ),
    )


def timings(usage: Usage) -> Timings:
    """Milliseconds of a request as the client reads them."""
    return Timings(
        prepare_ms=round(usage.prepare_ms, 3),
        queue_ms=round(usage.queue_ms, 3),
        first_token_ms=round(usage.first_token_ms, 3),
        engine_ms=round(usage.engine_ms, 3),
        total_ms=round(usage.total_ms, 3),
    )


def _piece(choice: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"index": choice, "delta": delta, "logprobs": None, "finish_reason": finish}
