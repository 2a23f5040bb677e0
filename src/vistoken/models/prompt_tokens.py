"""From a rendered prompt to token ids: marks expanded, every token tied to its characters.

Released LLaVA models tokenise the text between pictures piece by piece, each piece a call of its
own. With a Llama tokenizer that gives the text after a picture the space it gives the start of a
string, which one call over the whole prompt does not always do, so the pieces stay pieces here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from vistoken.core.errors import DataError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """Token ids of one prompt.

    Attributes:
        input_ids: N token ids; a picture is its count of copies of the image token's id.
        offsets: Per token the characters [start, stop) of the prompt it stands for; a token the
            tokenizer adds in front stands for (-1, -1).
        images: Per picture the positions [start, stop) of its tokens in `input_ids`.
    """

    input_ids: list[int]
    offsets: list[tuple[int, int]]
    images: list[tuple[int, int]]


def tokenize_prompt(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    image_counts: Sequence[int],
    image_token: str,
    where: str = "prompt",
) -> PromptTokens:
    """Tokenise a rendered prompt and expand its image marks.

    Args:
        tokenizer: A tokenizer backed by `tokenizers`, with `image_token` in its vocabulary.
        text: The prompt as the chat template renders it.
        image_counts: Number of tokens of each picture, in order of the marks.
        image_token: The mark, one token.
        where: Names the prompt in errors.

    Returns:
        The tokens; the beginning-of-sequence token stands in front where the tokenizer adds one
        and the text does not open with it.

    Raises:
        UsageError: The tokenizer gives no offsets or does not know `image_token`.
        DataError: The number of marks differs from the number of pictures.

    Source: spec of the LLaVA-1.5 preprocessing (`tokenizer_image_token`), behaviour only.
    """
    image_token_id = _image_token_id(tokenizer, image_token)
    pieces = text.split(image_token)
    if len(pieces) - 1 != len(image_counts):
        raise DataError(
            f"{where}: the text has {len(pieces) - 1} {image_token} marks for {len(image_counts)}"
            " images; write one mark, or one image part, per image"
        )
    ids = _opening_ids(tokenizer, text)
    offsets = [(-1, -1)] * len(ids)
    images: list[tuple[int, int]] = []
    start = 0
    for index, piece in enumerate(pieces):
        if index:
            count = image_counts[index - 1]
            images.append((len(ids), len(ids) + count))
            ids += [image_token_id] * count
            offsets += [(start, start + len(image_token))] * count
            start += len(image_token)
        if piece:
            encoded = tokenizer(
                piece, add_special_tokens=False, return_offsets_mapping=True, verbose=False
            )
            ids += encoded["input_ids"]
            offsets += [(start + left, start + right) for left, right in encoded["offset_mapping"]]
        start += len(piece)
    return PromptTokens(ids, offsets, images)


def _opening_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The beginning-of-sequence token, if this tokenizer opens a sequence with one."""
    bos = cast("int | None", tokenizer.bos_token_id)
    if bos is None or text.startswith(str(tokenizer.bos_token)):
        return []
    return [bos] if bos in tokenizer("")["input_ids"] else []


def _image_token_id(tokenizer: PreTrainedTokenizerBase, image_token: str) -> int:
    if not tokenizer.is_fast:
        raise UsageError(
            f"{type(tokenizer).__name__} gives no character offsets;"
            " load the tokenizer with AutoTokenizer so that the `tokenizers` backend is used"
        )
    token_id = tokenizer.convert_tokens_to_ids(image_token)
    if not isinstance(token_id, int) or token_id == tokenizer.unk_token_id:
        raise UsageError(
            f"the tokenizer has no token {image_token!r};"
            " add it with tokenizer.add_special_tokens before building prompts"
        )
    return token_id
