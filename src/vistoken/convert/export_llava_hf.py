"""Exporting to plain Hugging Face Llava: runs without this package, on every server."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from vistoken.convert.llava import refuse_occupied
from vistoken.convert.report import ConversionReport, Row
from vistoken.core.errors import UsageError
from vistoken.models.checkpoint import WEIGHTS, atomic_directory, is_light, merge_adapter
from vistoken.models.configuration import VistokenConfig
from vistoken.models.modeling import VistokenForConditionalGeneration
from vistoken.models.pipeline import PipelineSpec
from vistoken.models.processing import VistokenProcessor

logger = logging.getLogger(__name__)

_MARK = "{{- '<image>' -}}"


def export_llava_hf(
    directory: str | Path,
    out: str | Path,
    *,
    dtype: torch.dtype | None = None,
    dry_run: bool = False,
) -> ConversionReport:
    """Write a checkpoint of ours as ``LlavaForConditionalGeneration``, with equal logits.

    Args:
        directory: A full or a light checkpoint whose connector is ``mlp`` alone; LoRA is folded
            in.
        out: Directory to make; it must not exist, or be empty.
        dtype: Floating type of the weights; the checkpoint's own when None (float32 of a light
            one).
        dry_run: Check everything, write nothing.

    Returns:
        What every tensor became.

    Raises:
        UsageError: Llava has no place for a part of this model, or ``out`` is not empty.
        WeightsError: The checkpoint is incomplete or does not fit its config.

    Source: transformers:models/llava.
    """
    directory, out = Path(directory), Path(out)
    refuse_occupied(out)
    config = VistokenConfig.from_pretrained(directory)
    processor = VistokenProcessor.from_pretrained(directory)
    spec = processor.image_processor.spec
    refusal = why_not_llava(config, spec)
    if refusal:
        raise UsageError(f"{directory} cannot become a Hugging Face Llava: {refusal}")
    theirs = _config(config, spec)
    report = _report(directory, out, config, spec)
    if dry_run:
        return report
    options = {} if dtype is None else {"dtype": dtype}
    model = VistokenForConditionalGeneration.from_pretrained(directory, **options)
    merge_adapter(model)
    converted = _model(model, theirs)

    def write(folder: Path) -> None:
        converted.save_pretrained(folder)
        _processor(processor, spec, theirs).save_pretrained(folder)

    atomic_directory(out, write)
    report = replace(report, written=True)
    logger.info("%s", report.summary())
    return report


def why_not_llava(config: VistokenConfig, spec: PipelineSpec) -> str:
    """Why Hugging Face Llava has no place for a pipeline; empty where it has.

    Args:
        config: The model's config.
        spec: Its processor's pipeline.
    """
    chain = [stage.part for stage in spec.connector]
    if chain != ["mlp"]:
        return (
            f"its connector is {' -> '.join(chain)}, and Llava knows the two-layer projector "
            "'mlp' alone; serve it with vistoken, or export it with: vistoken convert to-llava-sp"
        )
    hidden = spec.connector[0].options.get("hidden_width")
    if hidden not in (None, spec.text_width):
        return f"its mlp is {hidden} wide inside, Llava's is {spec.text_width}"
    if config.decoder_config["mechanisms"]:
        return "it has decoder mechanisms, and Llava has none; leave them out of decoder_config"
    if len(spec.towers) > 1:
        return f"it has {len(spec.towers)} vision towers, and Llava has one"
    if spec.layout.part != "plain":
        return f"its layout is {spec.layout.part!r}, and Llava adds nothing to patch tokens"
    return _why_not_pixels(config, spec)


def _why_not_pixels(config: VistokenConfig, spec: PipelineSpec) -> str:
    tower = spec.towers[0]
    if spec.views.part not in ("pad", "square"):
        return f"its views are {spec.views.part!r}, and Llava encodes one view: pad or square"
    vision = config.vision_config.tower_configs()[0]
    if not type(vision).__module__.startswith("transformers."):
        return f"transformers has no vision tower {vision.model_type!r}"
    if tower.select == "default" and tower.prefix > 1:
        return f"its tower gives {tower.prefix} tokens before the grid, and Llava drops one"
    if tower.size[0] != tower.size[1] and (spec.views.part == "pad" or tower.fit == "crop"):
        return f"its tower takes {tower.size[0]}x{tower.size[1]} pixels, and Llava pads to a square"
    return ""


def _config(config: VistokenConfig, spec: PipelineSpec) -> Any:
    tower = spec.towers[0]
    (vision,) = config.vision_config.tower_configs()
    rows, cols = tower.input.grid
    return LlavaConfig(
        vision_config=vision,
        text_config=config.text_config,
        image_token_index=config.image_token_id,
        image_seq_length=rows * cols + tower.kept_prefix,
        projector_hidden_act="gelu",
        vision_feature_layer=config.vision_config.feature_layers()[0],
        # without tokens before the grid there is nothing to drop
        vision_feature_select_strategy="default" if tower.prefix > tower.kept_prefix else "full",
        multimodal_projector_bias=True,
        tie_word_embeddings=config.tie_word_embeddings,
    )


def _model(model: VistokenForConditionalGeneration, config: Any) -> Any:
    state = model.state_dict()
    config.dtype = model.dtype
    with torch.device("meta"):
        theirs = LlavaForConditionalGeneration(config)
    theirs.load_state_dict(state, strict=True, assign=True)
    theirs.tie_weights()
    theirs.generation_config = model.generation_config
    return theirs.eval()


def _processor(ours: VistokenProcessor, spec: PipelineSpec, config: Any) -> Any:
    tower = spec.towers[0]
    height, width = tower.size
    sides = {"height": height, "width": width}
    whole = tower.fit == "stretch"
    pixels = LlavaImageProcessorPil(
        do_pad=spec.views.part == "pad",
        size=sides if whole else {"shortest_edge": min(tower.size)},
        do_center_crop=not whole,
        crop_size=sides,
        image_mean=list(tower.mean),
        image_std=list(tower.std),
    )
    template = ours.chat_template
    if isinstance(template, str):
        # our processor writes the gap itself
        template = template.replace(_MARK, f"{{{{- '<image>{ours.image_gap}' -}}}}")
    return LlavaProcessor(
        pixels,
        ours.tokenizer,
        patch_size=tower.stride,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        chat_template=template,
        image_token=ours.image_token,
        num_additional_image_tokens=tower.prefix,
    )


def _report(
    directory: Path, out: Path, config: VistokenConfig, spec: PipelineSpec
) -> ConversionReport:
    with torch.device("meta"):
        state = VistokenForConditionalGeneration(config).state_dict()
    light = is_light(directory)
    rows = [
        Row(WEIGHTS, name, tuple(tensor.shape), _use(name), name) for name, tensor in state.items()
    ]
    return ConversionReport(
        source=directory,
        out=out,
        kind="light" if light else "full",
        result="Hugging Face Llava",
        connector="mlp",
        views=spec.views.part,
        layout=spec.layout.part,
        template="its own",
        base=None,
        vision_tower=None,
        rows=rows,
    )


def _use(name: str) -> str:
    if name.startswith("model.vision_tower."):
        return "vision tower"
    return "connector" if name.startswith("model.multi_modal_projector.") else "language model"
