"""Converting official LLaVA-1.5 and LLaVA-SP releases."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig

from vistoken.convert.accounting import is_vocabulary
from vistoken.convert.adapter import lora_deltas
from vistoken.convert.official import (
    OfficialPlan,
    plan_release,
    read_foundation,
)
from vistoken.convert.release import ReleaseKind, read_json, read_release
from vistoken.convert.report import ConversionReport
from vistoken.convert.tokenizers import (
    IMAGE_TOKEN,
    add_image_token,
    has_tokenizer,
    read_tokenizer,
)
from vistoken.core.errors import UsageError, WeightsError
from vistoken.models.build import complete_layout
from vistoken.models.checkpoint import ADAPTER, WEIGHTS, atomic_directory
from vistoken.models.image_processing import VistokenImageProcessor
from vistoken.models.processing import VistokenProcessor
from vistoken.models.references import Reference, write_references
from vistoken.models.templates import load_template

logger = logging.getLogger(__name__)


def convert_llava_sp(
    release: str | Path,
    out: str | Path,
    *,
    base: str | Path | None = None,
    vision_tower: str | Path | None = None,
    merge: bool = False,
    dry_run: bool = False,
) -> ConversionReport:
    """Convert an official LLaVA-SP or LLaVA-1.5 release.

    Args:
        release: The release's directory.
        out: Directory to make; it must not exist, or be empty.
        base: Language model the release builds on, a directory or hub id; found by the release's
            config when left out.
        vision_tower: Vision tower, likewise.
        merge: Write a full checkpoint, LoRA folded in, instead of a light one that refers to base
            and tower. A merged release always becomes a full one.
        dry_run: Check everything, write nothing.

    Returns:
        What every tensor of the release became.

    Raises:
        WeightsError: The release, its base or its tower is incomplete, unsafe or does not fit.
        MachineError: A part must be fetched and the hub cannot be reached.
        UsageError: ``out`` is not empty, or ``merge`` is needed and was not asked for.

    Source: haotian-liu/LLaVA llava/model/builder.py; CnFaker/LLaVA-SP.
    """
    out = Path(out)
    refuse_occupied(out)
    plan = plan_release(read_release(Path(release)), base, vision_tower)
    full = merge or plan.release.kind is ReleaseKind.MERGED
    tokenizer = _tokenizer(plan)
    plan = _with_layout(plan, tokenizer)
    processor = VistokenProcessor(
        VistokenImageProcessor(plan.pipeline.to_dict()),
        tokenizer,
        chat_template=load_template(plan.settings.template),
    )
    if not full:
        _refuse_light(plan, processor)
    report = _report(plan, out, full)
    if dry_run:
        if not plan.is_complete:
            read_foundation(plan)  # maps the files into memory; fails where writing would
        return report
    atomic_directory(out, lambda folder: _write(plan, processor, folder, full))
    logger.info("%s", report.summary())
    return replace(report, written=True)


def refuse_occupied(out: Path) -> None:
    """Refuse an output directory that holds something, before any work is done."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} already exists and is not empty; choose another output directory")


def write_full(folder: Path, config: Any, processor: Any, state: Mapping[str, Tensor]) -> None:
    """Write a plain Hugging Face directory from a state dict, in shards where it is large."""
    config.save_pretrained(folder)
    processor.save_pretrained(folder)
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    save_torch_state_dict(tensors, folder, metadata={"format": "pt"})


def write_generation_config(folder: Path, values: Mapping[str, Any]) -> None:
    """Write ``generation_config.json``.

    Many released files set a temperature without asking for sampling, which has no effect and
    which transformers refuses to save.
    """
    dropped = {"transformers_version", "_from_model_config"}
    if not values.get("do_sample"):
        dropped |= {"temperature", "top_p", "top_k", "min_p", "typical_p"}
    kept = {name: value for name, value in values.items() if name not in dropped}
    GenerationConfig(**kept).save_pretrained(folder)


def dtype_of(state: Mapping[str, Tensor]) -> torch.dtype:
    """The one floating type that holds every tensor of a state dict without loss."""
    found = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    return found.pop() if len(found) == 1 else torch.float32


def _write(plan: OfficialPlan, processor: Any, folder: Path, full: bool) -> None:
    parts = {} if plan.is_complete else read_foundation(plan)
    own = plan.ledger.state()
    # bfloat16 or float16 language models keep their type, whatever the connector was saved in
    dtype = dtype_of({n: t for n, t in {**parts, **own}.items() if _is_language(n)})
    _save_generation_config(plan, processor.image_token_id, folder)
    if not full:
        _write_light(plan, processor, folder, parts)
        return
    state = {**parts, **own}
    if plan.adapter is not None:
        for name, delta in lora_deltas(plan.adapter, plan.release.adapter).items():
            state[name] = state[name].float() + delta
    state = {name: tensor.to(dtype) for name, tensor in state.items()}
    config = copy.deepcopy(plan.config)
    if _has_image_token(plan, processor):
        config.image_token_id = processor.image_token_id
        config.text_config.vocab_size = plan.vocab_size
    else:
        state = {name: _with_image_row(name, tensor) for name, tensor in state.items()}
    if config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    config.architectures = ["VistokenForConditionalGeneration"]
    config.dtype = dtype
    write_full(folder, config, processor, state)


def _write_light(
    plan: OfficialPlan, processor: Any, folder: Path, parts: Mapping[str, Tensor]
) -> None:
    plan.config.architectures = ["VistokenForConditionalGeneration"]
    plan.config.save_pretrained(folder)
    processor.save_pretrained(folder)
    own = {name: tensor.contiguous() for name, tensor in plan.ledger.state().items()}
    save_file(own, folder / WEIGHTS, metadata={"format": "pt"})
    references = [
        Reference.to(f"vision_tower.{plan.tower_name}", str(plan.tower)),
        Reference.to("language_model", str(plan.base)),
    ]
    write_references(folder, references)
    if plan.adapter is not None:
        plan.adapter.save(plan.release.adapter, folder / ADAPTER)


def _refuse_light(plan: OfficialPlan, processor: VistokenProcessor) -> None:
    if _has_image_token(plan, processor):
        raise UsageError(
            f"the tokenizer of {plan.release.directory} has {IMAGE_TOKEN} among its language "
            "model's rows, which a light checkpoint cannot express; convert it with --merge"
        )
    if plan.retrained:
        raise UsageError(
            f"{plan.release.directory} has its own {plan.retrained[0]} in place of its base's, "
            "which a light checkpoint cannot express; convert it with --merge"
        )


def _has_image_token(plan: OfficialPlan, processor: VistokenProcessor) -> bool:
    """Whether the image token is one of the release's own, so that it needs no further row."""
    return bool(processor.image_token_id < plan.vocab_size)


def _is_language(name: str) -> bool:
    return name.startswith("model.language_model.") or name == "lm_head.weight"


def _with_image_row(name: str, tensor: Tensor) -> Tensor:
    """Append the image token's row; it is never read, so it is zero."""
    if not is_vocabulary(name):
        return tensor
    return torch.cat([tensor, tensor.new_zeros(1, tensor.shape[1])])


def _with_layout(plan: OfficialPlan, tokenizer: Any) -> OfficialPlan:
    """The plan with what the layout must know of the tokenizer."""
    config = copy.deepcopy(plan.config)
    config.layout_config = complete_layout(config, tokenizer)
    pipeline = replace(plan.pipeline, layout=config.pipeline().layout)
    return replace(plan, config=config, pipeline=pipeline)


def _tokenizer(plan: OfficialPlan) -> Any:
    places = [place for place in (plan.release.directory, plan.base) if place is not None]
    place = next((place for place in places if has_tokenizer(place)), None)
    if place is None:
        raise WeightsError(
            f"neither {plan.release.directory} nor its language model has a tokenizer; "
            "add tokenizer.model and tokenizer_config.json"
        )
    tokenizer = read_tokenizer(place)
    add_image_token(tokenizer, plan.vocab_size, place)
    length = plan.release.config.get("tokenizer_model_max_length")
    if isinstance(length, int):
        tokenizer.model_max_length = length
    tokenizer.padding_side = "left"  # a batch must end where its answers begin
    return tokenizer


def _save_generation_config(plan: OfficialPlan, image_token_id: int, folder: Path) -> None:
    """The base's way of generating, minus the image token, which is no word."""
    places = [place for place in (plan.release.directory, plan.base) if place is not None]
    place = next((p for p in places if (p / "generation_config.json").is_file()), None)
    values = {} if place is None else read_json(place / "generation_config.json")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        values.setdefault(name, plan.release.config.get(name))
    values["suppress_tokens"] = [image_token_id]
    write_generation_config(folder, values)


def _report(plan: OfficialPlan, out: Path, full: bool) -> ConversionReport:
    chain = " -> ".join(spec.part for spec in plan.pipeline.connector)
    acting = "".join(f", {m['part']}" for m in plan.config.decoder_config["mechanisms"])
    adapter_rows = [] if plan.adapter is None else plan.adapter.rows
    return ConversionReport(
        source=plan.release.directory,
        out=out,
        kind=plan.release.kind,
        result="full" if full else "light",
        connector=(chain if plan.variant == chain else f"{chain} {plan.variant}") + acting,
        views=plan.pipeline.views.part,
        layout=plan.pipeline.layout.part,
        template=plan.settings.template,
        base=plan.base,
        vision_tower=plan.tower,
        rows=[*plan.ledger.rows, *adapter_rows],
    )
