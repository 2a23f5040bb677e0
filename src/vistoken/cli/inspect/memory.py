"""`vistoken inspect memory`: what each training stage needs on each device, before it starts."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vistoken.cli.console import JsonOption, check_choice, quieten, say, say_json, table
from vistoken.cli.run_choice import FromScratchOption, Given, choose_run

if TYPE_CHECKING:
    from vistoken.train.config import RunConfig
    from vistoken.train.memory import StageMemory

_SHARDINGS = ("none", "zero2", "zero3", "fsdp2")
_GIB = 1 << 30
_COLUMNS = ("weights", "gradients", "optimizer", "activations", "loss", "total")


def memory(
    config: Annotated[
        str, typer.Option("--config", help="Run configuration (YAML file), or a recipe.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Such as stages.finetune.images_per_step=8."),
    ] = None,
    devices: Annotated[int, typer.Option(min=1, help="Devices that train together.")] = 1,
    sharding: Annotated[
        str, typer.Option(help="What they divide: none, zero2, zero3 or fsdp2.")
    ] = "none",
    length: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of a sample; the stage's max_length otherwise."),
    ] = None,
    supervised: Annotated[
        int | None, typer.Option(min=1, help="Supervised tokens of a sample; all text otherwise.")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="bfloat16 or float32, where the configuration says auto.")
    ] = "bfloat16",
    from_scratch: FromScratchOption = False,
    as_json: JsonOption = False,
) -> None:
    """Predict weights, gradients, optimiser state and activations of every stage, per device."""
    check_choice("--sharding", sharding, _SHARDINGS)
    check_choice("--precision", precision, ("bfloat16", "float32"))
    quieten()
    run = choose_run(config, Given(from_scratch=from_scratch), overrides or [], needs_data=False)
    number = precision if run.precision == "auto" else run.precision
    stages = _predict(run, number == "bfloat16", length, supervised, devices, sharding)
    if as_json:
        say_json(
            {
                "config": config,
                "devices": devices,
                "sharding": sharding,
                "precision": number,
                "stages": [{**asdict(stage), "total": stage.total} for stage in stages],
            }
        )
        return
    rows = [
        (stage.stage, *(f"{getattr(stage, column) / _GIB:,.2f}" for column in _COLUMNS))
        for stage in stages
    ]
    table(
        ("stage", *_COLUMNS),
        rows,
        f"{config}: GiB on each of {devices} device(s), {number}, sharding {sharding}",
        right=",".join(_COLUMNS),
    )
    for stage in stages:
        say(
            f"{stage.stage}: {stage.samples} samples of {stage.sequence} tokens at a time, "
            f"{stage.visual_tokens} of them visual"
        )
    say("without the workspace of kernels and the runtime's own share")


def _predict(
    run: RunConfig,
    bf16: bool,
    length: int | None,
    supervised: int | None,
    devices: int,
    sharding: Any,
) -> list[StageMemory]:
    from vistoken.cli.sources import read_config, read_image_processor
    from vistoken.models.cost import empty_model
    from vistoken.train.memory import predict_memory

    recipe = str(run.recipe)
    spec = read_image_processor(recipe).spec
    return [
        predict_memory(
            empty_model(read_config(recipe)),
            spec,
            stage,
            bf16=bf16,
            length=length,
            supervised=supervised,
            devices=devices,
            sharding=sharding,
        )
        for stage in run.stages
    ]
