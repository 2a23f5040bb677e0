"""`vistoken prune`: make a model cheaper with a registered method; the method decides how."""

from __future__ import annotations

import random
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vistoken.cli.console import (
    DeviceOption,
    DryRunOption,
    DtypeOption,
    JsonOption,
    check_choice,
    note,
    quieten,
    say,
    say_json,
)
from vistoken.cli.progress import Progress
from vistoken.core.errors import DataError, UsageError

if TYPE_CHECKING:
    from vistoken.core.pruning import Pruned, Pruner
    from vistoken.models import VistokenProcessor
    from vistoken.train.samples import Example


def prune(
    model: Annotated[str, typer.Argument(help="Recipe name, checkpoint directory or hub id.")],
    method: Annotated[str, typer.Option("--method", help="See 'vistoken list parts', pruner.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="Directory to make.")],
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", help="Calibration samples (JSONL); may be repeated."),
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Option of the method; may be repeated."),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples to draw from the data.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 0,
    image_root: Annotated[
        Path | None,
        typer.Option("--image-root", help="Folder of the image paths; default: the file's own."),
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Prune a model and save it as a checkpoint that loads like any other."""
    _check_output(out)
    quieten()
    pruner = _make_pruner(method, model, options or [])
    examples = _examples(pruner, method, data or [], image_root, samples, seed)
    result: dict[str, Any] = {
        "model": model,
        "method": method,
        "samples": len(examples),
        "out": str(out),
        "written": not dry_run,
    }
    if not dry_run:
        pruned = _run(model, pruner, examples, out, (device, dtype), as_json)
        result |= {"mechanisms": list(pruned.mechanisms), "summary": dict(pruned.summary)}
    if as_json:
        say_json(result)
        return
    _show(result)


def _check_output(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} already exists and is not empty; choose another output directory")


def _make_pruner(method: str, model: str, options: list[str]) -> Pruner:
    from vistoken.cli.sources import read_config
    from vistoken.core.registry import load_part, make_config, part_names
    from vistoken.train.overrides import apply_overrides

    check_choice("--method", method, part_names("pruner"))
    part = load_part("pruner", method)
    values = apply_overrides({}, options)
    config = make_config(part.config_class, values, f"prune method {method!r}")
    made: Pruner = part(config, read_config(model).text_config)
    return made


def _examples(
    pruner: Pruner,
    method: str,
    files: list[Path],
    image_root: Path | None,
    samples: int,
    seed: int,
) -> list[Example]:
    """The samples to look at, drawn from those that can be used."""
    if not pruner.wants_samples:
        if files:
            raise UsageError(f"method {method!r} looks at no samples with these options; leave "
                             "--data out")  # fmt: skip
        return []
    if not files:
        raise UsageError(
            f"method {method!r} looks at calibration samples; add --data FILE.jsonl "
            f"(about {samples} rows with pictures)"
        )
    from vistoken.train.samples import read_examples

    usable = [example for example in read_examples(files, image_root) if example.images]
    if not usable:
        raise DataError(f"{files[0]} has no row with a picture to calibrate on")
    chosen = sorted(random.Random(seed).sample(range(len(usable)), min(samples, len(usable))))
    return [usable[number] for number in chosen]


def _run(
    name: str,
    pruner: Pruner,
    examples: list[Example],
    out: Path,
    placement: tuple[str, str],
    quiet: bool,
) -> Pruned:
    from vistoken.cli.sources import load_model
    from vistoken.models.pruning import run_pruner, save_pruned

    if not quiet:
        note(f"loading {name}")
    model, processor = load_model(name, *placement)
    with Progress(quiet=quiet) as progress:

        def done(count: int) -> None:
            progress.steps("samples", count, len(examples))

        inputs = (
            {key: _moved(value, model.device) for key, value in sample.items()}
            for sample in _inputs(examples, processor)
        )
        pruned = run_pruner(pruner, model, inputs, done)
    source = None if pruner.changes_weights else _directory(name)
    save_pruned(model, processor, pruned, out, source)
    return pruned


def _inputs(examples: list[Example], processor: VistokenProcessor) -> Iterator[dict[str, Any]]:
    """Each sample's prompt up to its first answer, as a model takes it."""
    from vistoken.data.messages import image_paths
    from vistoken.models.images import open_image

    for example in examples:
        roles = [message["role"] for message in example.messages]
        end = roles.index("assistant") if "assistant" in roles else len(roles)
        prompt = example.messages[:end]
        text = processor.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        pictures = [open_image(path) for path in example.images[: len(image_paths(prompt))]]
        yield dict(processor(text=text, images=pictures or None, return_tensors="pt"))


def _moved(value: Any, device: Any) -> Any:
    if isinstance(value, list):
        return [_moved(item, device) for item in value]
    return value.to(device)


def _directory(name: str) -> Path | None:
    """Checkpoint directory a model is loaded from; None for one that is built."""
    from vistoken.cli.sources import has_trained_weights, is_recipe
    from vistoken.convert.resolve import resolve_model

    if not is_recipe(name):
        return resolve_model(name)
    if not has_trained_weights(name):
        return None
    return Path(str(resources.files("vistoken") / "assets" / name))


def _show(result: dict[str, Any]) -> None:
    if not result["written"]:
        note("dry run: nothing was written")
        say(f"would prune {result['model']} with {result['method']} on {result['samples']} samples")
        say(f"would write {result['out']}")
        return
    for key, value in result["summary"].items():
        if not isinstance(value, (list, dict)):
            say(f"{key.replace('_', ' ')}: {value}")
        elif isinstance(value, dict):
            say(f"{key}: " + ", ".join(f"{k} {v}" for k, v in value.items()))
        elif all(isinstance(item, int) for item in value):
            say(f"{key.replace('_', ' ')}: " + " ".join(map(str, value)))
    say(f"wrote {result['out']}")
