"""Converting releases that are whole models in a layout of their own, by their importer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vistoken.convert.accounting import is_vocabulary
from vistoken.convert.llava import (
    dtype_of,
    refuse_occupied,
    write_full,
    write_generation_config,
)
from vistoken.convert.pickles import TensorStore, find_weights, read_files
from vistoken.convert.release import read_json
from vistoken.convert.report import ConversionReport, Row
from vistoken.convert.tokenizers import IMAGE_TOKEN, add_image_token, read_tokenizer
from vistoken.core.errors import UsageError, WeightsError, did_you_mean
from vistoken.core.registry import load_part, part_names
from vistoken.models.checkpoint import atomic_directory
from vistoken.models.configuration import VistokenConfig
from vistoken.models.image_processing import VistokenImageProcessor
from vistoken.models.modeling import VistokenForConditionalGeneration
from vistoken.models.processing import VistokenProcessor
from vistoken.models.recipe import Recipe, parse_recipe
from vistoken.models.templates import canonical_name, load_template

logger = logging.getLogger(__name__)

_SHOWN = 3
_TURN_END = "<|im_end|>"


@dataclass(frozen=True)
class _Source:
    """A release, read: its recipe, our config, and our tensors with what they were."""

    directory: Path
    config: dict[str, Any]
    recipe: Recipe
    model_config: VistokenConfig
    state: dict[str, Tensor]
    rows: list[Row]


def convert_whole_release(
    importer: str,
    release: str | Path,
    out: str | Path,
    *,
    variant: str | None = None,
    dry_run: bool = False,
) -> ConversionReport:
    """Convert a release that holds tower, connector and language model to a full checkpoint.

    Args:
        importer: Name of the registered importer that knows the layout, such as ``mini-monkey``.
        release: The release's directory.
        out: Directory to make; it must not exist, or be empty.
        variant: Which of the importer's systems it is; its usual one when left out.
        dry_run: Check everything, write nothing.

    Returns:
        What every tensor of the release became.

    Raises:
        WeightsError: The release is incomplete, unsafe, or asks for something unknown here.
        UsageError: ``out`` is not empty, or the importer or the variant does not exist.
    """
    out = Path(out)
    refuse_occupied(out)
    reader = _reader(importer)
    chosen = reader.variants[0] if variant is None else variant
    if chosen not in reader.variants:
        raise UsageError(f"unknown variant {chosen!r}; {did_you_mean(chosen, reader.variants)}")
    source = _read(reader, Path(release), chosen)
    processor = _processor(reader, source)
    report = _report(source, out, chosen)
    if dry_run:
        return report
    atomic_directory(out, lambda folder: _write(source, processor, folder))
    logger.info("%s", report.summary())
    return replace(report, written=True)


def _reader(importer: str) -> Any:
    whole = {
        name: keys.whole
        for name in part_names("importer")
        if (keys := load_part("importer", name)).whole is not None
    }
    if importer not in whole:
        raise UsageError(
            f"importer {importer!r} reads no whole releases; {did_you_mean(importer, whole)}"
        )
    return whole[importer]


def _read(reader: Any, directory: Path, variant: str) -> _Source:
    where = directory / "config.json"
    if not where.is_file():
        raise WeightsError(f"{directory} has no config.json; fetch the whole release")
    config = read_json(where)
    recipe = parse_recipe(reader.recipe(config, str(where), variant), str(where))
    found = find_weights(directory, "model") or find_weights(directory, "pytorch_model")
    if found is None:
        raise WeightsError(f"{directory} holds no weights; fetch the whole release")
    store = read_files([found])
    made = reader.state(store, config, str(directory))
    model_config = recipe.model_config_for()
    # what was split shares memory, which no file of tensors can express
    state = {
        name: tensor.clone() if len(parts) > 1 else tensor
        for parts in made.values()
        for name, tensor in parts.items()
    }
    _check(directory, state, model_config)
    rows = [_row(store, key, parts) for key, parts in made.items()]
    return _Source(directory, config, recipe, model_config, state, rows)


def _check(directory: Path, state: Mapping[str, Tensor], config: VistokenConfig) -> None:
    """Every place of the model has a tensor of its shape; vocabularies lack the image's row."""
    with torch.device("meta"):
        model = VistokenForConditionalGeneration(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    problems = [f"{name} is missing" for name in sorted(set(shapes) - set(state) - tied)]
    problems += [f"{name} has no place" for name in sorted(set(state) - set(shapes))]
    for name in sorted(set(state) & set(shapes)):
        needed = shapes[name]
        if is_vocabulary(name):
            needed = (needed[0] - 1, *needed[1:])
        if tuple(state[name].shape) != needed:
            problems.append(f"{name} is {tuple(state[name].shape)} where {needed} is needed")
    if problems:
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise WeightsError(
            f"{directory} does not fit its config: {'; '.join(problems[:_SHOWN])}{more}; "
            "fetch the release again"
        )


def _processor(reader: Any, source: _Source) -> VistokenProcessor:
    tokenizer = read_tokenizer(source.directory)
    add_image_token(tokenizer, source.model_config.image_token_id, source.directory)
    tokenizer.padding_side = "left"  # a batch must end where its answers begin
    pipeline = source.recipe.pipeline(source.model_config)
    processor = VistokenProcessor(
        VistokenImageProcessor(pipeline.to_dict()),
        tokenizer,
        chat_template=load_template(source.recipe.template),
        image_gap=reader.template_gap,
    )
    if processor.image_token_id != source.model_config.image_token_id:
        raise WeightsError(
            f"the tokenizer in {source.directory} has a token {IMAGE_TOKEN} of its own; remove "
            "it from the tokenizer, one is added when converting"
        )
    return processor


def _write(source: _Source, processor: VistokenProcessor, folder: Path) -> None:
    config = source.model_config
    config.architectures = ["VistokenForConditionalGeneration"]
    config.dtype = dtype_of(source.state)
    state = {
        name: torch.cat([tensor, tensor.new_zeros(1, tensor.shape[1])])
        if is_vocabulary(name)
        else tensor
        for name, tensor in source.state.items()
        if not (name == "lm_head.weight" and config.tie_word_embeddings)
    }
    write_full(folder, config, processor, state)
    write_generation_config(folder, _generation(source, processor))


def _generation(source: _Source, processor: VistokenProcessor) -> dict[str, Any]:
    """How to generate: answers end with a turn's end too, and never hold a picture's mark."""
    path = source.directory / "generation_config.json"
    values = read_json(path) if path.is_file() else {}
    text = source.model_config.text_config
    for name in ("bos_token_id", "pad_token_id"):
        values.setdefault(name, getattr(text, name))
    ends = values.get("eos_token_id", text.eos_token_id)
    ends = list(ends) if isinstance(ends, list) else [ends]
    turn_end = processor.tokenizer.get_vocab().get(_TURN_END)
    ends += [] if turn_end is None or turn_end in ends else [turn_end]
    return {**values, "eos_token_id": ends, "suppress_tokens": [processor.image_token_id]}


def _row(store: TensorStore, key: str, parts: Mapping[str, Tensor]) -> Row:
    first = next(iter(parts))
    use = "language model"
    if ".vision_tower." in first:
        use = "vision tower"
    elif ".multi_modal_projector." in first:
        use = "connector"
    note = f"split into {len(parts)}" if len(parts) > 1 else ""
    return Row(store.files[key].name, key, tuple(store[key].shape), use, ", ".join(parts), note)


def _report(source: _Source, out: Path, variant: str) -> ConversionReport:
    pipeline = source.recipe.pipeline(source.model_config)
    return ConversionReport(
        source=source.directory,
        out=out,
        kind=variant,
        result="full",
        connector=" -> ".join(spec.part for spec in pipeline.connector),
        views=pipeline.views.part,
        layout=pipeline.layout.part,
        template=canonical_name(source.recipe.template),
        base=None,
        vision_tower=None,
        rows=source.rows,
    )
