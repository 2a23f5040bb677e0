"""Exporting to the official LLaVA and LLaVA-SP file layout, which their released code reads."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vistoken.convert.adapter import refuse_unusual
from vistoken.convert.export_config import official_config
from vistoken.convert.llava import refuse_occupied
from vistoken.convert.official import NEWLINE, connector_names
from vistoken.convert.release import ADAPTER_CONFIG, NON_LORA, read_json
from vistoken.convert.report import ConversionReport, Row
from vistoken.convert.tokenizers import has_tokenizer
from vistoken.core.errors import UsageError, WeightsError
from vistoken.core.registry import load_part, make_config, part_names
from vistoken.models.checkpoint import (
    ADAPTER,
    WEIGHTS,
    atomic_directory,
    is_light,
    read_safetensors,
)
from vistoken.models.configuration import VistokenConfig
from vistoken.models.connector import ResolvedStage
from vistoken.models.modeling import VistokenForConditionalGeneration
from vistoken.models.processing import VistokenProcessor
from vistoken.models.references import Reference, is_random, locate, read_references

logger = logging.getLogger(__name__)

_LORA_FILE = "adapter_model.safetensors"
_STEM = "base_model.model.model."
_LANGUAGE = "model.language_model."
_TOWER = "model.vision_tower."
_TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


def export_llava_sp(
    directory: str | Path,
    out: str | Path,
    *,
    base: str | None = None,
    vision_tower: str | None = None,
    dry_run: bool = False,
) -> ConversionReport:
    """Write a light checkpoint in the official layout; importing the result gives equal weights.

    With LoRA: ``adapter_model``, ``adapter_config.json`` and ``non_lora_trainables.bin``; without:
    the connector alone, ``mm_projector.bin`` of LLaVA or ``model.bin`` of LLaVA-SP's first stage.
    Beside them ``config.json`` and the base's tokenizer.

    Args:
        directory: A light checkpoint with one connector stage that the official code knows.
        out: Directory to make; it must not exist, or be empty.
        base: What to call the language model in the release; its reference when None.
        vision_tower: What to call the vision tower, likewise.
        dry_run: Check everything, write nothing.

    Returns:
        What every tensor became.

    Raises:
        UsageError: The official layout has no place for a part, or ``out`` is not empty.
        WeightsError: The checkpoint is incomplete, or its language model is not here.

    Source: haotian-liu/LLaVA llava/train/train.py and llava/model/builder.py; CnFaker/LLaVA-SP.
    """
    directory, out = Path(directory), Path(out)
    refuse_occupied(out)
    if not is_light(directory):
        raise UsageError(
            f"{directory} is a full checkpoint; the official layout holds connector and LoRA "
            "beside a base, so export the light checkpoint that it was merged from"
        )
    config = VistokenConfig.from_pretrained(directory)
    references = {reference.part: reference for reference in read_references(directory)}
    tower = f"vision_tower.{config.vision_config.specs()[0].name}"
    names = {
        "base": base or _source(directory, references, "language_model"),
        "vision_tower": vision_tower or _source(directory, references, tower),
    }
    processor = VistokenProcessor.from_pretrained(directory)
    with torch.device("meta"):
        model = VistokenForConditionalGeneration(config)
    settings = official_config(config, processor, names["vision_tower"], str(directory))
    importer = _importer(directory, model)
    files = _files(directory, model, importer, names["base"])
    tokenizer = _tokenizer_of(references["language_model"])
    report = _report(directory, out, model, settings, files, names)
    if dry_run:
        return report

    def write(folder: Path) -> None:
        _write_json(folder / "config.json", settings)
        for name, content in files.items():
            _write(folder / name, content)
        for name in _TOKENIZER_FILES:
            if (tokenizer / name).is_file():
                shutil.copyfile(tokenizer / name, folder / name)

    atomic_directory(out, write)
    report = replace(report, written=True)
    logger.info("%s", report.summary())
    return report


def _source(directory: Path, references: Mapping[str, Reference], part: str) -> str:
    if part not in references:
        raise WeightsError(f"{directory}/references.json lacks {part}")
    source = references[part].source
    if is_random(source):
        raise UsageError(
            f"the {part} of {directory} has random weights, which a release cannot refer to"
        )
    return source if ":" not in source else locate(source)


def _importer(directory: Path, model: VistokenForConditionalGeneration) -> Any:
    """The importer of this connector, after checking that a release records all it needs."""
    chain = model.model.plan.chain
    importers = [load_part("importer", name) for name in part_names("importer")]
    known = {i.part: i for i in importers if i.mechanism is None}
    if len(chain) != 1 or chain[0].kind != "project":
        raise UsageError(
            f"{directory} has the connector {' -> '.join(stage.name for stage in chain)}; the "
            f"official layout has one stage: {' or '.join(sorted(known))}"
        )
    part = model.model.plan.spec.connector[0].part
    if part not in known:
        raise UsageError(
            f"{directory} has the connector {part!r}; the official layout knows "
            f"{' and '.join(sorted(known))}"
        )
    _check_options(directory, known[part], model, chain[0])
    return known[part]


def _check_options(
    directory: Path, importer: Any, model: VistokenForConditionalGeneration, stage: ResolvedStage
) -> None:
    """A release stores no options: what its tensors do not tell must be as released."""
    official = _official_connector(importer, model)
    grid = model.model.plan.spec.towers[0].input.grid
    try:
        told = importer.options(official, grid)
    except WeightsError as error:
        raise UsageError(
            f"{directory}: the official layout cannot record this connector: {error}"
        ) from error
    released = make_config(stage.part.config_class, dict(told), f"connector part {stage.name!r}")
    ours, theirs = asdict(stage.config), asdict(released)
    for name, value in ours.items():
        if name not in told and value != theirs[name]:
            raise UsageError(
                f"{directory}: the official layout cannot record {name} {value!r} of the connector "
                f"(released models have {theirs[name]!r})"
            )
    with torch.device("meta"):
        again = stage.part(released, stage.context).state_dict()
    mine = model.model.multi_modal_projector.stages[0].state_dict()
    if {n: t.shape for n, t in mine.items()} != {n: t.shape for n, t in again.items()}:
        raise UsageError(
            f"{directory}: the official layout would be read as another connector ({told}); only "
            "the released geometry can be exported"
        )


def _official_connector(importer: Any, model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict()
    try:
        names = connector_names(importer, model)
    except WeightsError as error:
        raise UsageError(f"this connector cannot be exported: {error}") from error
    return {theirs: state[ours] for theirs, ours in names.items()}


def _files(
    directory: Path, model: nn.Module, importer: Any, base: str
) -> dict[str, dict[str, Any]]:
    """Content of every weight file and of the adapter's config, by file name."""
    own = read_safetensors(directory / WEIGHTS)
    names = {ours: theirs for theirs, ours in connector_names(importer, model).items()}
    names[f"model.layout.{NEWLINE}"] = NEWLINE
    strange = [name for name in own if name not in names]
    missing = [name for name in names if name not in own and not name.startswith("model.layout.")]
    if strange or missing:
        raise WeightsError(
            f"{directory / WEIGHTS} does not fit its config: {(missing + strange)[0]} is "
            f"{'missing' if missing else 'unexpected'}"
        )
    connector = {names[name]: tensor for name, tensor in own.items()}
    if not (directory / ADAPTER).is_dir():
        # the released trainers call it differently
        file = "mm_projector.bin" if importer.part == "mlp" else "model.bin"
        return {file: {f"model.{name}": tensor for name, tensor in connector.items()}}
    settings = read_json(directory / ADAPTER / ADAPTER_CONFIG)
    refuse_unusual(settings, directory / ADAPTER)
    adapter = {
        _adapter_key(name): tensor
        for name, tensor in read_safetensors(directory / ADAPTER / _LORA_FILE).items()
    }
    return {
        _LORA_FILE: adapter,
        ADAPTER_CONFIG: _adapter_config(settings, adapter, model, base),
        f"{NON_LORA}.bin": {f"{_STEM}{name}": tensor for name, tensor in connector.items()},
    }


def _adapter_key(name: str) -> str:
    module = name.removeprefix("base_model.model.")
    if not module.startswith((_LANGUAGE, _TOWER)):
        raise UsageError(
            f"the released layout has no place for LoRA on {module.rpartition('.lora_')[0]}; "
            "fold it in with vistoken merge and export the result"
        )
    return _STEM + _official_module(module)


def _official_module(name: str) -> str:
    """A module's or tensor's official name below ``model.``."""
    if name.startswith(_TOWER):
        return f"vision_tower.vision_tower.vision_model.{name.removeprefix(_TOWER)}"
    return name.removeprefix(_LANGUAGE)


def _adapter_config(
    settings: Mapping[str, Any], adapter: Mapping[str, Tensor], model: nn.Module, base: str
) -> dict[str, Any]:
    wrapped = {key.removeprefix(_STEM).rpartition(".lora_")[0] for key in adapter}
    linear = {
        _official_module(name)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith((_LANGUAGE, _TOWER))
    }
    leaves = {name.rpartition(".")[2] for name in wrapped}
    parts = {name.startswith("vision_tower.") for name in wrapped}
    reached = {
        name
        for name in linear
        if name.rpartition(".")[2] in leaves and name.startswith("vision_tower.") in parts
    }
    # names of leaves reach every layer that has them; where fewer were trained, name each one
    targets = leaves if reached == wrapped else {f"model.{name}" for name in wrapped}
    return {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": settings["lora_alpha"],
        "lora_dropout": settings.get("lora_dropout", 0.0),
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": settings["r"],
        "target_modules": sorted(targets),
        "task_type": "CAUSAL_LM",
        "use_rslora": bool(settings.get("use_rslora", False)),
    }


def _tokenizer_of(reference: Reference) -> Path:
    """Folder of the language model's own tokenizer, which knows no image token."""
    source = Path(locate(reference.source))
    if not source.is_dir() or not has_tokenizer(source):
        raise WeightsError(
            f"the language model {reference.source!r} is not a local directory with a tokenizer, "
            "which belongs to a release; fetch it and name its directory in references.json"
        )
    return source


def _write(path: Path, content: dict[str, Any]) -> None:
    if path.suffix == ".json":
        _write_json(path, content)
    elif path.suffix == ".safetensors":
        tensors = {name: tensor.contiguous() for name, tensor in content.items()}
        save_file(tensors, path, metadata={"format": "pt"})
    else:
        torch.save({name: tensor.clone() for name, tensor in content.items()}, path)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _report(
    directory: Path,
    out: Path,
    model: VistokenForConditionalGeneration,
    settings: Mapping[str, Any],
    files: Mapping[str, Mapping[str, Any]],
    names: Mapping[str, str],
) -> ConversionReport:
    rows = [
        Row(file, key, tuple(tensor.shape), "lora" if ".lora_" in key else "connector", key)
        for file, content in files.items()
        if not file.endswith(".json")
        for key, tensor in content.items()
    ]
    return ConversionReport(
        source=directory,
        out=out,
        kind="light",
        result="official lora" if ADAPTER_CONFIG in files else "official connector",
        connector=model.model.plan.spec.connector[0].part,
        views=settings["image_aspect_ratio"],
        layout=settings["mm_patch_merge_type"],
        template=settings.get("version", "the family's"),
        base=Path(names["base"]),
        vision_tower=Path(names["vision_tower"]),
        rows=rows,
    )
