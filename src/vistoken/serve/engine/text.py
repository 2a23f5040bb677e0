"""Tokens to text while they come: whole characters only, and nothing behind a stop text."""

from __future__ import annotations

from typing import Any

_HALF = "\ufffd"


class TextStream:
    """The growing text of one answer.

    Args:
        tokenizer: Decodes.
        stops: Texts before which the answer ends.
    """

    def __init__(self, tokenizer: Any, stops: tuple[str, ...] = ()) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._tokens: list[int] = []
        # Tokens from here on are decoded anew, those before `_read` only as context of the rest:
        # what a token reads like may depend on its neighbour.
        self._start = self._read = 0
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Add a token; what can be said of the text since the last call."""
        self._tokens.append(token)
        before = self._decode(self._tokens[self._start : self._read])
        after = self._decode(self._tokens[self._start :])
        if len(after) <= len(before) or after.endswith(_HALF):
            return ""
        self._start, self._read = self._read, len(self._tokens)
        return self._say(after[len(before) :], last=False)

    def finish(self) -> str:
        """What is left when no token follows."""
        if self.stopped:
            return ""
        before = self._decode(self._tokens[self._start : self._read])
        after = self._decode(self._tokens[self._start :])
        return self._say(after[len(before) :], last=True)

    def _say(self, text: str, *, last: bool) -> str:
        text = self._held + text
        self._held = ""
        found = [place for place in (text.find(stop) for stop in self._stops) if place >= 0]
        if found:
            self.stopped = True
            return text[: min(found)]
        if not last:
            keep = max((_overlap(text, stop) for stop in self._stops), default=0)
            if keep:
                text, self._held = text[:-keep], text[-keep:]
        return text

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of a text that may be the beginning of a stop text."""
    for count in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:count]):
            return count
    return 0
