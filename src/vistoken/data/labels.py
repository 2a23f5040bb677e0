"""Token ids and labels of a conversation, built from the chat template's generation spans.

The template says what is supervised; the tokenizer's offsets say which tokens that is. Nothing is
tokenised a second time to be counted, so a mask cannot drift from the ids it belongs to.
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
from vistoken.models.prompt_tokens import tokenize_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from vistoken.data.messages import Message, Part

Span = tuple[int, int]

IGNORE_LABEL = -100
"""Label of a position that is not supervised."""

ROLE_TEMPLATE = 0
"""Role of a token the template wrote: headers, separators, its default system text."""
ROLE_SYSTEM = 1
"""Role of the text of a system message."""
ROLE_USER = 2
"""Role of the text and the pictures of a user message."""
ROLE_ASSISTANT = 3
"""Role of a supervised token: an answer and its terminator."""

_GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_PRIVATE_USE = range(0xE000, 0xF8FF)


@dataclass(frozen=True, slots=True)
class EncodedConversation:
    """One conversation as the decoder gets it; the four lists have one entry per token.

    Attributes:
        input_ids: Token ids, pictures expanded.
        labels: The token's own id where it is supervised, `IGNORE_LABEL` elsewhere.
        role: One of the `ROLE_` codes.
        turn: Number of the round (a question and its answer), from 0.
        images: Per picture the positions [start, stop) of its tokens.
        text: The conversation as rendered, one mark per picture.
        supervised: Per answer the characters [start, stop) of `text` that are supervised.
    """

    input_ids: list[int]
    labels: list[int]
    role: list[int]
    turn: list[int]
    images: list[Span]
    text: str
    supervised: list[Span]


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    messages: Sequence[Message],
    image_counts: Sequence[int],
    image_token: str,
    add_generation_prompt: bool = False,
    where: str = "conversation",
) -> EncodedConversation:
    """Render, tokenise and label a conversation.

    A token with characters on both sides of a span's edge counts as inside the span.

    Args:
        tokenizer: A tokenizer backed by `tokenizers`, with `image_token` in its vocabulary.
        template: Text of a chat template with `{% generation %}` blocks.
        messages: The conversation, as `read_messages` returns it.
        image_counts: Number of tokens of each picture, in order.
        image_token: The mark the template writes for a picture.
        add_generation_prompt: End with the header of an answer to come; nothing need be supervised.
        where: Names the sample in errors.

    Returns:
        Ids, labels, roles and turns.

    Raises:
        UsageError: The template has no generation block or changes the texts it is given.
        DataError: The template refuses the messages, marks and pictures differ in number, or
            nothing is supervised.
    """
    if not _GENERATION_BLOCK.search(template):
        raise UsageError(
            "the chat template has no {% generation %} block, so nothing says what to supervise;"
            " use a template of vistoken.models.templates"
        )
    text, supervised = _render(tokenizer, template, messages, add_generation_prompt, where)
    tokens = tokenize_prompt(tokenizer, text, image_counts, image_token, where)

    speakers = bytearray(len(text))
    for code, (start, stop) in _spoken(
        tokenizer, template, messages, add_generation_prompt, where, text
    ):
        speakers[start:stop] = bytes([code]) * (stop - start)
    for start, stop in supervised:
        speakers[start:stop] = bytes([ROLE_ASSISTANT]) * (stop - start)
    role = [_role_of(speakers, span) for span in tokens.offsets]
    for start, stop in tokens.images:
        role[start:stop] = [ROLE_USER] * (stop - start)
    if ROLE_ASSISTANT not in role and not add_generation_prompt:
        raise DataError(
            f"{where}: no token would be supervised; end the conversation with an assistant message"
            " that is not empty"
        )
    labels = [
        token if code == ROLE_ASSISTANT else IGNORE_LABEL
        for token, code in zip(tokens.input_ids, role, strict=True)
    ]
    # A round ends where its answer does.
    ends = [stop for _, stop in supervised]
    last_round = sum(message["role"] == "user" for message in messages) - 1
    turn = [min(bisect_right(ends, start), last_round) for start, _ in tokens.offsets]
    return EncodedConversation(
        tokens.input_ids, labels, role, turn, tokens.images, text, supervised
    )


def _render(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    messages: Sequence[Mapping[str, Any]],
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
    messages: Sequence[Message],
    add_generation_prompt: bool,
    where: str,
    text: str,
) -> list[tuple[int, Span]]:
    """Where the rendered text holds what system and user said, with their role codes.

    Rendered once more with brackets around each such text: looking for the words themselves could
    find them in a header or in an earlier turn.
    """
    used = set(text)
    system, user, closing = islice((chr(c) for c in _PRIVATE_USE if chr(c) not in used), 3)
    codes = {system: ROLE_SYSTEM, user: ROLE_USER}
    openings = {"system": system, "user": user}
    bracketed = [
        _bracket(message, openings[message["role"]], closing)
        if message["role"] in openings
        else message
        for message in messages
    ]
    marked, _ = _render(tokenizer, template, bracketed, add_generation_prompt, where)
    spans: list[tuple[int, Span]] = []
    kept: list[str] = []
    code, start = ROLE_TEMPLATE, 0
    for character in marked:
        if character in codes:
            code, start = codes[character], len(kept)
        elif character == closing:
            spans.append((code, (start, len(kept))))
        else:
            kept.append(character)
    if "".join(kept) != text:
        raise UsageError(
            f"{where}: the chat template changes the texts it renders, so roles cannot be told;"
            " use a template of vistoken.models.templates"
        )
    return spans


def _bracket(message: Message, opening: str, closing: str) -> Message:
    """Brackets around the words of each text; a template may trim the space around them."""
    content: list[Part] = []
    for part in message["content"]:
        words = part["text"].strip() if part["type"] == "text" else ""
        if part["type"] == "text" and words:
            before, after = part["text"].split(words, 1)
            content.append({"type": "text", "text": before + opening + words + closing + after})
        else:
            content.append(part)
    return {"role": message["role"], "content": content}


def _role_of(speakers: bytearray, span: Span) -> int:
    """Role of a token from the characters it stands for; an answer's character decides."""
    start, stop = span
    if start < 0 or start >= len(speakers):
        return ROLE_TEMPLATE
    # A token without characters of its own (a trimmed run of spaces, say) belongs where it stands.
    return max(speakers[start : max(stop, start + 1)])
