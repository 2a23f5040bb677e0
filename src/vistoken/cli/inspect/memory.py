"""`vistoken inspect memory`: what each training stage needs on each device, before it starts."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vistoken.cli.console import JsonOption, check_choice, quieten, say, say_json, table
from vistoken.cli.run_choice import FromScratchOption, Given, choose_run

if TYPE_CHECKING:
    from vistoken.train.config import RunConfig
    from vistoken.train.memory import StageMemory

_SHARDINGS = ("none", "zero2", "zero3", "fsdp2")
_GIB = 1 << 30
_COLUMNS = ("weights", "gradients", "optimizer", "working", "total")


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
    words = _words(run)
    stages = _predict(run, words, number == "bfloat16", length, supervised, devices, sharding)
    if as_json:
        say_json(
            {
                "config": config,
                "devices": devices,
                "sharding": sharding,
                "precision": number,
                "stages": [
                    {**asdict(stage), "working": stage.working, "total": stage.total}
                    for stage in stages
                ],
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
            f"{stage.stage}: {stage.samples:,} x {stage.sequence:,} tokens at a time, "
            f"{stage.visual_tokens:,} of them a picture's"
        )
        if stage.words is not None:
            read = words.get(stage.stage)
            say(f"{stage.stage}: {stage.words:,} words {'of its scenes' if read else 'assumed'}")
    say("working: activations, logits, towers at work; at the fullest moment of a step")
    say("left out: the workspace of kernels and the runtime's own share")


def _words(run: RunConfig) -> dict[str, int]:
    """Words of the stages whose scenes can be read."""
    from vistoken.train.objectives import find_objective
    from vistoken.train.scenes import read_scenes, scenes_file, vocabulary
    from vistoken.train.stage_data import stage_files

    words = {}
    for stage in run.stages:
        files = [scenes_file(path) for path in stage_files(run, stage)[0]]
        if find_objective(stage.objective).rows == "scenes" and all(map(Path.is_file, files)):
            words[stage.name] = len(vocabulary([s for path in files for s in read_scenes(path)]))
    return words


def _predict(
    run: RunConfig,
    words: dict[str, int],
    bf16: bool,
    length: int | None,
    supervised: int | None,
    devices: int,
    sharding: Any,
) -> list[StageMemory]:
    from vistoken.cli.sources import read_config, read_image_processor
    from vistoken.models.cost import empty_model
    from vistoken.train.memory import predict_memory
    from vistoken.train.stage_views import stage_spec

    recipe = str(run.recipe)
    spec = read_image_processor(recipe).spec
    return [
        predict_memory(
            empty_model(read_config(recipe)),
            stage_spec(spec, stage),
            stage,
            bf16=bf16,
            length=length,
            supervised=supervised,
            words=words.get(stage.name),
            cached=run.cache is not None,
            devices=devices,
            sharding=sharding,
        )
        for stage in run.stages
    ]
