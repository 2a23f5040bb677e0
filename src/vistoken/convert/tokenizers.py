"""Tokenizers of released checkpoints, fixed so that every reload gives the same ids.

A Llama tokenizer's ids depend on ``legacy``, which transformers does not save. So the tokenizer is
saved as the generic class over its finished backend: what is stored is what runs.
"""

from __future__ import annotations

from operator import itemgetter
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, normalizers
from transformers import AddedToken, AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from vistoken.convert.release import read_json
from vistoken.core.errors import WeightsError

IMAGE_TOKEN = "<image>"
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "vocab.json")
_SPACE = "▁"
_OF_SENTENCEPIECE = ("LlamaTokenizer", "InternLM2Tokenizer")
"""Classes that are sentencepiece and nothing else; the code that releases of the latter bring
along is never run."""


def has_tokenizer(directory: Path) -> bool:
    """Whether a directory holds a tokenizer's files."""
    return any((directory / name).is_file() for name in TOKENIZER_FILES)


def read_tokenizer(directory: Path) -> Any:
    """Load a released tokenizer exactly as its configuration means it.

    Args:
        directory: Folder with ``tokenizer.model`` or ``tokenizer.json``.

    Returns:
        A tokenizer whose ``save_pretrained`` and reload keep every id. Of the Llama class, and of
        InternLM2's, ``legacy`` and ``add_bos_token`` are taken from ``tokenizer_config.json``,
        where absent as transformers 4 had them: both on. Tokens of an ``added_tokens.json``, which
        transformers 5 passes over, are among its own.

    Raises:
        WeightsError: The files are missing, cannot be read or contradict each other.
    """
    config_file = directory / "tokenizer_config.json"
    settings = read_json(config_file) if config_file.is_file() else {}
    is_llama = str(settings.get("tokenizer_class", "")).startswith(_OF_SENTENCEPIECE) or (
        not settings and (directory / "tokenizer.model").is_file()
    )
    spaced = True
    try:
        if not is_llama:
            tokenizer = AutoTokenizer.from_pretrained(directory)
            _add_listed_tokens(tokenizer, directory)
            return tokenizer
        # a null in the file means the same as no entry
        legacy = settings.get("legacy")
        legacy = True if legacy is None else bool(legacy)
        bos = settings.get("add_bos_token")
        bos = True if bos is None else bool(bos)
        spaced = _puts_space_first(directory)
        spacing = {} if spaced else {"add_prefix_space": False}
        tokenizer = LlamaTokenizer.from_pretrained(
            directory, legacy=legacy, add_bos_token=bos, **spacing
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(
            f"the tokenizer in {directory} cannot be loaded ({first}); fetch its files again"
        ) from error
    _add_listed_tokens(tokenizer, directory)
    if legacy:
        _prefix_every_stretch(tokenizer.backend_tokenizer, spaced)
    return _generic(tokenizer)


def add_image_token(tokenizer: Any, rows: int, place: Path) -> None:
    """Give a released tokenizer the image token: its own one, or one behind all rows.

    Args:
        tokenizer: Changed in place.
        rows: Rows of the language model's token embeddings.
        place: The tokenizer's folder, for errors.

    Raises:
        WeightsError: The tokenizer has tokens that the language model has no rows for.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    own = vocabulary.get(IMAGE_TOKEN)
    if own is not None and own >= rows:
        raise WeightsError(
            f"{IMAGE_TOKEN} has id {own} in the tokenizer of {place}, beyond the language model's "
            f"{rows} rows; remove it from the tokenizer, it is added when converting"
        )
    extra = sorted((number, token) for token, number in vocabulary.items() if number >= rows)
    if extra:
        shown = ", ".join(repr(token) for _, token in extra[:3])
        more = f" and {len(extra) - 3} more" if len(extra) > 3 else ""
        raise WeightsError(
            f"extra tokens {shown}{more} in the tokenizer of {place} have no row in the language "
            f"model, which has {rows}; remove them, or add the resized embed_tokens and lm_head "
            "to the release"
        )
    # padded embeddings have rows without a token; the image token's row comes after them
    spare = [] if own is not None else [f"<unused-{n}>" for n in range(len(vocabulary), rows)]
    tokenizer.add_tokens([*spare, IMAGE_TOKEN], special_tokens=True)


def _add_listed_tokens(tokenizer: Any, directory: Path) -> None:
    """Give a tokenizer what older releases list beside its vocabulary, each under its id."""
    path = directory / "added_tokens.json"
    if not path.is_file():
        return
    listed = read_json(path)
    special = set(tokenizer.all_special_tokens) | _listed_as_special(directory)
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    for token, number in listed.items():
        if not isinstance(number, int):
            raise WeightsError(f"{path}: the id of {token!r} must be a number, not {number!r}")
    # each gets the next free id, so they are added in the order of those they should have
    for token, number in sorted(listed.items(), key=itemgetter(1)):
        if token not in vocabulary:
            # matched as written, not as normalised, whatever the text around it
            added = AddedToken(token, normalized=False, special=token in special)
            tokenizer.add_tokens([added], special_tokens=token in special)
        if (found := tokenizer.convert_tokens_to_ids(token)) != number:
            raise WeightsError(
                f"{path}: {token!r} has id {number}, but {found} in the tokenizer beside it; "
                "fetch the release's files again"
            )


def _listed_as_special(directory: Path) -> set[str]:
    path = directory / "special_tokens_map.json"
    names: set[str] = set()
    for value in read_json(path).values() if path.is_file() else ():
        for one in value if isinstance(value, list) else [value]:
            names.add(str(one.get("content")) if isinstance(one, dict) else str(one))
    return names


def _puts_space_first(directory: Path) -> bool:
    """Whether a sentencepiece model writes a space mark before a text, as its file says."""
    path = directory / "tokenizer.model"
    if not path.is_file():  # a finished backend has its own way
        return True
    pieces: list[str] = SentencePieceProcessor(model_file=str(path)).encode("a", out_type=str)
    return pieces[0].startswith(_SPACE)


def _prefix_every_stretch(backend: Tokenizer, spaced: bool) -> None:
    """Write the space mark before every stretch, as sentencepiece does, a leading space kept."""
    prefix = [normalizers.Prepend(_SPACE)] if spaced else []
    backend.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", _SPACE)])
    backend.pre_tokenizer = None


def _generic(tokenizer: Any) -> PreTrainedTokenizerFast:
    special = {
        name: str(value)
        for name, value in tokenizer.special_tokens_map.items()
        if isinstance(value, str)
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        clean_up_tokenization_spaces=False,
        **special,
    )
