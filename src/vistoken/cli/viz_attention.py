"""`vistoken viz attention`: what the model looked at while it wrote each token of its answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vistoken.cli.console import (
    DeviceOption,
    DryRunOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    quieten,
    say,
    say_json,
)
from vistoken.cli.picture_files import OutputOption, check_files, write_files

if TYPE_CHECKING:
    from vistoken.viz.looking import Look


def attention(
    image: Annotated[str, typer.Argument(help="Picture, a path or an http(s) URL.")],
    question: Annotated[str, typer.Option("--question", "-q", help="What to ask about it.")],
    model: ModelOption = "nano",
    answer: Annotated[
        str | None,
        typer.Option(help="Look at this answer instead of the model's own."),
    ] = None,
    layer: Annotated[
        list[int] | None,
        typer.Option(min=0, help="Decoder layer, from 0; may be repeated. Default: mean of all."),
    ] = None,
    head: Annotated[
        int | None, typer.Option(min=0, help="Query head, from 0. Default: mean of all.")
    ] = None,
    rollout: Annotated[
        bool, typer.Option("--rollout", help="Follow attention through all layers to the input.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 32,
    out: OutputOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Draw the attention of each answer token on the picture.

    The chosen layers are asked for their weights, all layers run as they always do. Default
    output: attention.png and attention.html, which steps through the tokens.
    """
    files = out or [Path("attention.png"), Path("attention.html")]
    check_files(files)
    quieten()
    from vistoken.cli.sources import check_model, load_model, read_config
    from vistoken.models.images import open_image
    from vistoken.viz.attention import Choice
    from vistoken.viz.attention_page import look_page
    from vistoken.viz.attention_png import draw_look
    from vistoken.viz.looking import look_at

    check_model(model)
    choice = Choice(tuple(layer or ()), head, rollout)
    choice.check(read_config(model).text_config)
    picture = open_image(image, allow_url=True)
    if dry_run:
        say(f"{image}: would ask {model} and write {', '.join(map(str, files))}")
        return
    look = look_at(
        *load_model(model, device, dtype),
        picture,
        question,
        answer=answer,
        choice=choice,
        max_new_tokens=max_new_tokens,
    )
    title = f"Attention of {model} on {Path(image).name}"
    write_files(files, lambda: draw_look(look), lambda: look_page(look, title))
    if as_json:
        say_json(
            {"image": image, "model": model, "files": [str(f) for f in files], **_values(look)}
        )
        return
    share = sum(row["picture"] + row["spatial"] for row in look.shares) / len(look.shares)
    say("".join(look.words).strip())
    say(
        f"{len(look.words)} tokens, {look.of}: {share:.1%} of the weight on the picture's tokens; "
        f"wrote {', '.join(map(str, files))}"
    )


def _values(look: Look) -> dict[str, Any]:
    from vistoken.core.tables import TOKEN, TokenKind, rectangles

    kinds = [TokenKind(kind).name.lower() for kind in TOKEN.get(look.tokens, "kind").tolist()]
    boxes = rectangles(look.tokens).tolist()
    return {
        "question": look.question,
        "answer": "".join(look.words).strip(),
        "attention": look.of,
        "layers": list(look.layers),
        "visual_tokens": [
            {"kind": kind, "rectangle": [round(edge, 2) for edge in box]}
            for kind, box in zip(kinds, boxes, strict=True)
        ],
        "answer_tokens": [
            {"text": word, "shares": shares, "weights": [float(f"{w:.6g}") for w in row]}
            for word, shares, row in zip(
                look.words, look.shares, look.weights.tolist(), strict=True
            )
        ],
    }
