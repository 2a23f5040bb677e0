"""Token ids and labels of a conversation, built from the chat template's generation spans.

The template says what is supervised; the tokenizer's offsets say which tokens that is. Nothing is
tokenised a second time to be counted, so a mask cannot drift from the ids it belongs to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vistoken.core.errors import DataError
from vistoken.core.tables import TextRole
from vistoken.models.dialogue import Span, render_dialogue
from vistoken.models.prompt_tokens import tokenize_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from vistoken.data.messages import Message

IGNORE_LABEL = -100
"""Label of a position that is not supervised."""

ROLE_TEMPLATE = int(TextRole.TEMPLATE)
"""Role of a token the template wrote: headers, separators, its default system text."""
ROLE_SYSTEM = int(TextRole.SYSTEM)
"""Role of the text of a system message."""
ROLE_USER = int(TextRole.USER)
"""Role of the text and the pictures of a user message."""
ROLE_ASSISTANT = int(TextRole.ASSISTANT)
"""Role of a supervised token: an answer and its terminator."""


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
    said = render_dialogue(tokenizer, template, messages, add_generation_prompt, where)
    tokens = tokenize_prompt(tokenizer, said.text, image_counts, image_token, where)
    role = [said.role(span) for span in tokens.offsets]
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
    turn = [said.turn(start) for start, _ in tokens.offsets]
    return EncodedConversation(
        tokens.input_ids, labels, role, turn, tokens.images, said.text, said.answers
    )
