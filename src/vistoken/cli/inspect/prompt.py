"""`vistoken inspect prompt`: text, ids, visual spans and the label mask of a prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from vistoken.cli.console import JsonOption, ModelOption, counted, quieten, say, say_json
from vistoken.core.errors import DataError, UsageError

if TYPE_CHECKING:
    from rich.text import Text

    from vistoken.data.labels import EncodedConversation
    from vistoken.data.messages import Message
    from vistoken.models import VistokenProcessor

_STYLES = ("dim", "magenta", "cyan", "bold green")
_ROLES = ("template", "system", "user", "supervised")
_VISUAL = "yellow"


def prompt(
    turns: Annotated[
        list[str], typer.Argument(metavar="QUESTION [ANSWER]...", help="In turn, each in quotes.")
    ],
    model: ModelOption = "nano",
    image: Annotated[
        list[str] | None, typer.Option("--image", "-i", help="Picture; may be repeated.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    template: Annotated[
        str | None, typer.Option(help="Another template than the model's own.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show a conversation as the model gets it, and what of it training would supervise.

    Pictures belong to the first question. After a last question without an answer, the header of
    the answer to come is shown.
    """
    if not turns[0].strip():
        raise DataError("the question is empty; write what you want to know")
    quieten()
    from vistoken.cli.sources import check_model, read_processor
    from vistoken.data.labels import encode_conversation
    from vistoken.models.images import open_image
    from vistoken.models.templates import load_template

    check_model(model)
    text = load_template(template) if template else None
    pictures = [open_image(source, allow_url=True) for source in image or []]
    processor = read_processor(model)
    sizes = [(picture.height, picture.width) for picture in pictures]
    encoded = encode_conversation(
        processor.tokenizer,
        text or _own_template(processor, model),
        _messages(turns, image or [], system),
        [len(processor.image_processor.token_map(*size)) for size in sizes],
        processor.image_token,
        add_generation_prompt=len(turns) % 2 == 1,
        where="the prompt",
    )
    if as_json:
        say_json({"model": model, **_as_json(processor, encoded)})
    else:
        _show(processor, encoded)


def _own_template(processor: VistokenProcessor, model: str) -> str:
    if processor.chat_template is None:
        raise UsageError(f"model {model!r} has no chat template; name one with --template")
    return str(processor.chat_template)


def _messages(turns: list[str], images: list[str], system: str | None) -> list[Message]:
    from vistoken.data.messages import read_messages

    messages: list[dict[str, Any]] = []
    if system is not None:
        messages.append({"role": "system", "content": system})
    for number, text in enumerate(turns):
        content: list[dict[str, str]] = []
        if number == 0:
            content += [{"type": "image", "path": path} for path in images]
        content.append({"type": "text", "text": text})
        messages.append({"role": "assistant" if number % 2 else "user", "content": content})
    return read_messages({"id": "prompt", "messages": messages}, "the command line")


def _as_json(processor: VistokenProcessor, encoded: EncodedConversation) -> dict[str, Any]:
    return {
        "text": encoded.text,
        "input_ids": encoded.input_ids,
        "labels": encoded.labels,
        "roles": [_ROLES[code] for code in encoded.role],
        "turns": encoded.turn,
        "visual_spans": [list(span) for span in encoded.images],
        "supervised_spans": [list(span) for span in encoded.supervised],
        "supervised_tokens": _supervised(encoded),
    }


def _supervised(encoded: EncodedConversation) -> int:
    from vistoken.data.labels import IGNORE_LABEL

    return sum(label != IGNORE_LABEL for label in encoded.labels)


def _show(processor: VistokenProcessor, encoded: EncodedConversation) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False)
    legend = Text("colours: ")
    for name, style in zip((*_ROLES, "visual"), (*_STYLES, _VISUAL), strict=True):
        legend.append(name, style=style).append("  ")
    console.print(legend)
    console.print(_coloured_text(processor, encoded))
    console.print()
    console.print(_coloured_ids(processor, encoded))
    console.print()
    total, supervised = len(encoded.input_ids), _supervised(encoded)
    visual = sum(stop - start for start, stop in encoded.images)
    say(
        f"{total} tokens: {visual} visual in {counted(len(encoded.images), 'picture')}, "
        f"{supervised} supervised ({supervised / total:.0%})"
    )


def _coloured_text(processor: VistokenProcessor, encoded: EncodedConversation) -> Text:
    """Tokens as text, coloured by who wrote them; a picture is its mark and its tokens' count."""
    from rich.text import Text

    from vistoken.data.runs import label_runs

    text = Text()
    for run in label_runs(encoded):
        if run.picture is not None:
            text.append(f"{processor.image_token}x{run.stop - run.start}", style=_VISUAL)
        else:
            words = processor.tokenizer.decode(encoded.input_ids[run.start : run.stop])
            text.append(cast("str", words), style=_STYLES[run.role])
    return text


def _coloured_ids(processor: VistokenProcessor, encoded: EncodedConversation) -> Text:
    from rich.text import Text

    from vistoken.data.runs import label_runs

    text = Text()
    for run in label_runs(encoded):
        if run.picture is not None:
            count = run.stop - run.start
            where = f"[{run.start}:{run.stop}]"
            text.append(f"{where} {processor.image_token_id}x{count} ", style=_VISUAL)
        else:
            ids = " ".join(str(token) for token in encoded.input_ids[run.start : run.stop])
            text.append(f"{ids} ", style=_STYLES[run.role])
    return text
