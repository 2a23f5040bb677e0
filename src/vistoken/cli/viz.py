"""`vistoken viz`: pictures of what a model does; `views` draws a picture's encoder inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vistoken.cli.console import (
    DryRunOption,
    JsonOption,
    ModelOption,
    quieten,
    say,
    say_json,
)
from vistoken.cli.picture_files import OutputOption, check_files, write_files
from vistoken.cli.viz_attention import attention
from vistoken.cli.viz_tokens import tokens

app = typer.Typer(no_args_is_help=True, help="Draw what a model does with a picture.")
app.command("attention")(attention)
app.command("tokens")(tokens)


@app.callback()
def group() -> None:
    """Draw what a model does with a picture."""


@app.command("views")
def views(
    image: Annotated[str, typer.Argument(help="Picture, a path or an http(s) URL.")],
    model: ModelOption = "nano",
    out: OutputOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Draw the views of a picture: lines of slices or tiles, their order, tokens of each.

    No weights are read. A PNG is a drawing, an HTML file has a table beside it and needs nothing
    else.
    """
    files = out or [Path("views.png")]
    check_files(files)
    quieten()
    from vistoken.cli.sources import check_model, read_image_processor
    from vistoken.models.images import open_image
    from vistoken.viz.page import views_page
    from vistoken.viz.views import describe_views, draw_views

    check_model(model)
    picture = open_image(image, allow_url=True)
    processor = read_image_processor(model)
    table = processor.view_table(picture.height, picture.width)
    token_map = processor.plan.token_map(table)
    shown = describe_views(table, token_map)
    if not dry_run:
        title = f"Views of {Path(image).name} for {model}"
        write_files(
            files,
            lambda: draw_views(picture, shown),
            lambda: views_page(picture, shown, title),
        )
    if as_json:
        say_json(
            {
                "image": image,
                "size": [picture.height, picture.width],
                "model": model,
                "tokens": len(token_map),
                "views": [
                    {
                        "order": view.order,
                        "kind": view.kind.name.lower(),
                        "tokens": view.tokens,
                        "rectangle": [round(edge, 2) for edge in view.box],
                    }
                    for view in shown
                ],
                "files": [str(path) for path in files],
                "written": not dry_run,
            }
        )
        return
    verb = "would write" if dry_run else "wrote"
    say(
        f"{image}: {picture.height}x{picture.width} pixels, {len(shown)} views, "
        f"{len(token_map)} tokens; {verb} {', '.join(map(str, files))}"
    )
