"""`vistoken chat`: one question, or a conversation."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vistoken.cli.console import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    Quantization,
    note,
    quieten,
    say_json,
)
from vistoken.core.errors import DataError, UsageError, VistokenError

if TYPE_CHECKING:
    from PIL.Image import Image

    from vistoken.cli.conversation import Answer, Conversation

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
_HELP = "/image PATH adds a picture, /reset starts over, /quit leaves (so does Ctrl-D)"


def chat(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[IMAGE]... [QUESTION]", help="Pictures, then the question."),
    ] = None,
    model: ModelOption = "nano",
    image: Annotated[
        list[str] | None,
        typer.Option("--image", "-i", help="Picture, a path or an http(s) URL; may be repeated."),
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 256,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0 takes the likeliest token, more samples.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    quantization: Annotated[
        Quantization | None,
        typer.Option(help="Weights of the language model: int8 (torchao) or nf4 (bitsandbytes)."),
    ] = None,
    token_budget: Annotated[
        int | None, typer.Option(help="Visual tokens to spend; reserved for parts that can.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Ask about pictures, once or in a conversation.

    With a question it answers and leaves; without one it stays: /image PATH adds a picture,
    /reset starts over, /quit leaves.
    """
    pictures, question = split_words(words or [])
    if token_budget is not None:
        raise UsageError(
            f"--token-budget {token_budget}: no part of model {model!r} can choose how many "
            "visual tokens it makes; leave the option out"
        )
    if question is not None and not question.strip():
        raise DataError("the question is empty; write what you want to know")
    if as_json and question is None:
        raise UsageError("--json answers one question; write it as the last word")
    quieten()
    from vistoken.cli.conversation import Conversation
    from vistoken.cli.sources import check_model, load_model

    check_model(model)
    opened = [_open(source) for source in [*(image or []), *pictures]]
    loaded = load_model(model, device, dtype, quantization)
    conversation = Conversation(*loaded, system, max_new_tokens, temperature, seed)
    for picture in opened:
        conversation.show(picture)
    if question is None:
        _converse(conversation)
    elif as_json:
        answer = conversation.ask(question, lambda _: None)
        said = {"model": model, "question": question, "answer": answer.text}
        say_json(said | {key: n for key, n in asdict(answer).items() if key != "text"})
    else:
        _answer(conversation, question)


def split_words(words: list[str]) -> tuple[list[str], str | None]:
    """Tell pictures from the question: pictures come first and look like one.

    Raises:
        UsageError: More than one question.
    """
    pictures = [word for word in words if looks_like_picture(word)]
    questions = [word for word in words if not looks_like_picture(word)]
    if len(questions) > 1:
        raise UsageError(
            f"there is one question, got {len(questions)}: "
            f"{', '.join(map(repr, questions[:3]))}; put it in quotes, and pictures after --image"
        )
    return pictures, questions[0] if questions else None


def looks_like_picture(word: str) -> bool:
    """Whether a bare word names a picture: an address, a file, or a picture's suffix."""
    if word.startswith(("http://", "https://", "data:image/")):
        return True
    if any(character.isspace() for character in word) and not word.lower().endswith(_SUFFIXES):
        return False
    return word.lower().endswith(_SUFFIXES) or (bool(word) and Path(word).is_file())


def _open(source: str) -> Image:
    from vistoken.models.images import open_image

    return open_image(source, allow_url=True)


def _converse(conversation: Conversation) -> None:
    note(_HELP)
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if line in ("/quit", "/exit"):
            return
        try:
            _take(conversation, line)
        except VistokenError as error:  # a mistake does not end a conversation
            note(f"error: {error}")


def _take(conversation: Conversation, line: str) -> None:
    command, _, rest = line.partition(" ")
    if not line:
        return
    if command == "/image":
        if not rest.strip():
            raise UsageError("/image needs a path or an address")
        picture = _open(rest.strip())
        conversation.show(picture)
        note(f"{picture.height}x{picture.width} pixels, shown with your next question")
    elif command == "/reset":
        conversation.reset()
        note("forgotten")
    elif command.startswith("/"):
        raise UsageError(f"unknown command {command}; {_HELP}")
    else:
        _answer(conversation, line)


def _answer(conversation: Conversation, question: str) -> None:
    answer = conversation.ask(question, lambda piece: print(piece, end="", flush=True))
    print(flush=True)
    if not answer.text:
        note("(the model's answer is empty)")
    if sys.stderr.isatty():
        note(_speed(answer))


def _speed(answer: Answer) -> str:
    speed = "" if answer.tokens_per_s is None else f", then {answer.tokens_per_s:.1f} tokens/s"
    return (
        f"[{answer.visual_tokens} visual of {answer.prompt_tokens} prompt tokens; "
        f"first token after {answer.first_token_s:.2f} s{speed}]"
    )
