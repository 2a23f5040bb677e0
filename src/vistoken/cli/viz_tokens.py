"""`vistoken viz tokens`: which visual tokens there are, and what became of each encoder cell."""

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
    from vistoken.viz.fates import TokenStory


def tokens(
    image: Annotated[str, typer.Argument(help="Picture, a path or an http(s) URL.")],
    model: ModelOption = "nano",
    question: Annotated[
        str | None,
        typer.Option(
            "--question", "-q", help="Also run the model on it: what its layers do with the tokens."
        ),
    ] = None,
    out: OutputOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Draw which encoder cells were kept, merged or dropped, and the tokens that there are.

    Without a question no weights are read. Default output: tokens.png and tokens.html.
    """
    files = out or [Path("tokens.png"), Path("tokens.html")]
    check_files(files)
    quieten()
    from vistoken.cli.sources import check_model, load_model, read_image_processor
    from vistoken.models.images import open_image
    from vistoken.viz.fates import tell_story
    from vistoken.viz.layer_rows import follow_tokens
    from vistoken.viz.story_page import story_page
    from vistoken.viz.story_png import draw_story

    check_model(model)
    picture = open_image(image, allow_url=True)
    if question is None or dry_run:
        processor = read_image_processor(model)
        table = processor.view_table(picture.height, picture.width)
        story = tell_story(processor.plan, table)
    else:
        story = follow_tokens(*load_model(model, device, dtype), picture, question)
    title = f"Tokens of {Path(image).name} for {model}"
    if not dry_run:
        write_files(
            files,
            lambda: draw_story(picture, story, title),
            lambda: story_page(picture, story, title),
        )
    if as_json:
        names = [str(path) for path in files]
        say_json({"image": image, "model": model, "files": names, "written": not dry_run}
                 | _values(story))  # fmt: skip
        return
    cells = ", ".join(f"{count} {name}" for name, count in story.counts().items() if count)
    kinds = ", ".join(f"{count} {name}" for name, count in story.kinds().items())
    verb = "would write" if dry_run else "wrote"
    say(f"{len(story.cells)} encoder cells: {cells}")
    say(f"{len(story.tokens)} tokens: {kinds}; {verb} {', '.join(map(str, files))}")


def _values(story: TokenStory) -> dict[str, Any]:
    from vistoken.core.tables import TOKEN, TokenKind, rectangles

    kinds = [TokenKind(kind).name.lower() for kind in TOKEN.get(story.tokens, "kind").tolist()]
    boxes = rectangles(story.tokens).tolist()
    return {
        "size": list(story.size),
        "cells": story.counts(),
        "kinds": story.kinds(),
        "tokens": [
            {
                "kind": kind,
                "view": view,
                "rectangle": [round(edge, 2) for edge in box],
            }
            for kind, view, box in zip(
                kinds, TOKEN.get(story.tokens, "view").tolist(), boxes, strict=True
            )
        ],
        "layers": [{"layer": row.layer, **row.counts()} for row in story.rows],
    }
