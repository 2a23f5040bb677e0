"""Who says what in a rendered conversation, character by character.

The template says which characters are an answer; what system and user said is found by rendering
once more with brackets around it.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from vistoken.core.errors import DataError, UsageError
from vistoken.core.tables import TextRole
from vistoken.models.unread_parts import refuse_unread_parts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
Said = Mapping[str, Any]

_GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_PRIVATE_USE = range(0xE000, 0xF8FF)


@dataclass(frozen=True)
class Dialogue:
    """A conversation as its template renders it.

    Attributes:
        text: One mark per picture.
        speakers: A :class:`TextRole` for every character.
        answers: Per answer the characters [start, stop), its terminator included.
        rounds: Number of user messages.
    """

    text: str
    speakers: bytearray
    answers: list[Span]
    rounds: int

    def role(self, span: Span) -> int:
        """Role of a token from the characters it stands for; an answer's character decides."""
        start, stop = span
        if start < 0 or start >= len(self.speakers):
            return TextRole.TEMPLATE
        # A token without characters of its own (a trimmed run of spaces) belongs where it stands.
        return max(self.speakers[start : max(stop, start + 1)])

    def turn(self, start: int) -> int:
        """Number of the round a character belongs to; a round ends where its answer does."""
        ended = bisect_right(self.answers, start, key=lambda answer: answer[1])
        return min(ended, self.rounds - 1)


def tells_answers(template: str) -> bool:
    """Whether a chat template says which of its text is an answer."""
    return _GENERATION_BLOCK.search(template) is not None


def render_dialogue(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    messages: Sequence[Said],
    add_generation_prompt: bool = False,
    where: str = "conversation",
) -> Dialogue:
    """Render a conversation.

    Args:
        tokenizer: Its special tokens are the template's.
        template: Text of a chat template with `{% generation %}` blocks.
        messages: The conversation; content is a text or a list of typed parts.
        add_generation_prompt: End with the header of an answer to come.
        where: Names the conversation in errors.

    Raises:
        UsageError: The template has no generation block or changes the texts it is given.
        DataError: The template refuses the messages, or they hold videos or boxes.
    """
    refuse_unread_parts(messages, where)
    if not tells_answers(template):
        raise UsageError(
            "the chat template has no {% generation %} block, so nothing says what to supervise;"
            " use a template of vistoken.models.templates"
        )
    text, answers = _render(tokenizer, template, messages, add_generation_prompt, where)
    speakers = bytearray(len(text))
    spoken = _spoken(tokenizer, template, messages, add_generation_prompt, where, text)
    spoken += [(TextRole.ASSISTANT, answer) for answer in answers]
    for role, (start, stop) in spoken:
        speakers[start:stop] = bytes([role]) * (stop - start)
    rounds = sum(message["role"] == "user" for message in messages)
    return Dialogue(text, speakers, answers, rounds)


def _render(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    messages: Sequence[Said],
    add_generation_prompt: bool,
    where: str,
) -> tuple[str, list[Span]]:
    """The conversation as text, and the characters of its generation blocks."""
    try:
        rendered = render_jinja_template(
            conversations=cast("Any", [list(messages)]),
            chat_template=template,
            return_assistant_tokens_mask=True,
            add_generation_prompt=add_generation_prompt,
            **cast("dict[str, Any]", tokenizer.special_tokens_map),
        )
    except TemplateError as error:
        raise DataError(f"{where}: the chat template refuses the messages: {error}") from error
    texts, spans = cast("tuple[list[str], list[list[Span]]]", rendered)
    return texts[0], [(start, stop) for start, stop in spans[0]]


def _spoken(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    messages: Sequence[Said],
    add_generation_prompt: bool,
    where: str,
    text: str,
) -> list[tuple[TextRole, Span]]:
    """Where the rendered text holds what system and user said.

    Rendered once more with brackets around each such text: looking for the words themselves could
    find them in a header or in an earlier turn.
    """
    used = set(text)
    system, user, closing = islice((chr(c) for c in _PRIVATE_USE if chr(c) not in used), 3)
    roles = {system: TextRole.SYSTEM, user: TextRole.USER}
    openings = {"system": system, "user": user}
    bracketed = [
        {**message, "content": _bracket(message["content"], openings[message["role"]], closing)}
        if message["role"] in openings
        else message
        for message in messages
    ]
    marked, _ = _render(tokenizer, template, bracketed, add_generation_prompt, where)
    spans: list[tuple[TextRole, Span]] = []
    kept: list[str] = []
    role, start = TextRole.TEMPLATE, 0
    for character in marked:
        if character in roles:
            role, start = roles[character], len(kept)
        elif character == closing:
            spans.append((role, (start, len(kept))))
        else:
            kept.append(character)
    if "".join(kept) != text:
        raise UsageError(
            f"{where}: the chat template changes the texts it renders, so roles cannot be told;"
            " use a template of vistoken.models.templates"
        )
    return spans


def _bracket(content: str | Sequence[Said], opening: str, closing: str) -> Any:
    """Brackets around the words of each text; a template may trim the space around them."""
    if not isinstance(content, str):
        return [
            {**part, "text": _bracket(part["text"], opening, closing)}
            if part["type"] == "text"
            else part
            for part in content
        ]
    words = content.strip()
    if not words:
        return content
    before, after = content.split(words, 1)
    return before + opening + words + closing + after
