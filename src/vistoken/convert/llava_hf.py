"""Converting Hugging Face Llava checkpoints (``LlavaForConditionalGeneration``)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig

from vistoken.convert.accounting import Ledger, file_of, language_target, tower_target
from vistoken.convert.llava import (
    dtype_of,
    refuse_occupied,
    write_full,
    write_generation_config,
)
from vistoken.convert.pickles import TensorStore, find_weights, read_files
from vistoken.convert.preprocessing import read_preprocessing
from vistoken.convert.release import read_json
from vistoken.convert.report import ConversionReport
from vistoken.core.errors import WeightsError
from vistoken.models.checkpoint import atomic_directory
from vistoken.models.configuration import VistokenConfig, VistokenVisionConfig
from vistoken.models.image_processing import VistokenImageProcessor
from vistoken.models.modeling import VistokenForConditionalGeneration
from vistoken.models.pipeline import PartSpec, PipelineSpec
from vistoken.models.processing import VistokenProcessor
from vistoken.models.templates import load_template
from vistoken.models.towers.probe import probe_tower

logger = logging.getLogger(__name__)

_PROJECTOR = "multi_modal_projector."
_TEMPLATE = "vicuna-v1"


@dataclass(frozen=True)
class _Source:
    """A Hugging Face Llava checkpoint, read."""

    directory: Path
    config: Any
    pipeline: PipelineSpec
    model_config: VistokenConfig
    ledger: Ledger


def is_llava_hf(directory: Path) -> bool:
    """Whether a directory holds a Hugging Face Llava checkpoint."""
    path = directory / "config.json"
    if not path.is_file():
        return False
    config = read_json(path)
    return config.get("model_type") == "llava" and "vision_config" in config


def convert_llava_hf(
    directory: str | Path, out: str | Path, *, dry_run: bool = False
) -> ConversionReport:
    """Convert a Hugging Face Llava checkpoint to a full one of ours, with equal logits.

    Args:
        directory: The checkpoint, with old or new tensor names.
        out: Directory to make; it must not exist, or be empty.
        dry_run: Check everything, write nothing.

    Returns:
        What every tensor became.

    Raises:
        WeightsError: The checkpoint is incomplete, unsafe, or asks for something unknown here.
        UsageError: ``out`` is not empty.

    Source: transformers:models/llava.
    """
    out = Path(out)
    refuse_occupied(out)
    source = _read(Path(directory))
    processor, template = _processor(source)
    report = _report(source, out, template)
    if dry_run:
        return report
    atomic_directory(out, lambda folder: _write(source, processor, folder))
    logger.info("%s", report.summary())
    return replace(report, written=True)


def _read(directory: Path) -> _Source:
    if not is_llava_hf(directory):
        raise WeightsError(
            f"{directory} is no Hugging Face Llava checkpoint (config.json with model_type "
            "'llava' and a vision_config); official releases go through: vistoken convert llava-sp"
        )
    try:
        config = AutoConfig.from_pretrained(directory)
    except (OSError, ValueError, TypeError) as error:
        first = str(error).strip().splitlines()[0]
        raise WeightsError(f"{directory}/config.json cannot be read: {first}") from error
    tower, fill = _tower(directory, config)
    model_config = VistokenConfig(
        vision_config=VistokenVisionConfig(towers=[tower]),
        connector_config=[{"part": "mlp", "name": "mlp", "options": {}}],
        layout_config={"part": "plain", "name": "plain", "options": {}},
        text_config={
            **config.text_config.to_dict(),
            "model_type": config.text_config.model_type,
        },
        image_token_id=config.image_token_id,
    )
    spec = model_config.pipeline()
    views = PartSpec(fill, name=fill)
    pipeline = PipelineSpec(spec.towers, spec.connector, spec.layout, spec.text_width, views)
    ledger = _account(directory, model_config)
    return _Source(directory, config, pipeline, model_config, ledger)


def _tower(directory: Path, config: Any) -> tuple[dict[str, Any], Literal["pad", "square"]]:
    """The tower's part of our config, and the view function its processor amounts to."""
    where = f"{directory}/config.json"
    if config.projector_hidden_act != "gelu" or not config.multimodal_projector_bias:
        raise WeightsError(
            f"{where}: only projectors with gelu and biases can be converted, this one has "
            f"{config.projector_hidden_act} and multimodal_projector_bias "
            f"{config.multimodal_projector_bias}"
        )
    vision: PreTrainedConfig = config.vision_config
    preprocessing = read_preprocessing(directory)
    layer = config.vision_feature_layer
    probe = probe_tower(vision, layer, preprocessing.size)
    strategy = config.vision_feature_select_strategy
    if strategy == "default" and probe.prefix != 1:
        raise WeightsError(
            f"{where}: vision_feature_select_strategy 'default' drops the first token, but this "
            f"tower gives {probe.prefix} tokens before its grid; only one (CLS) can be converted"
        )
    tower = {
        "name": vision.model_type.removesuffix("_vision_model"),
        "config": {**vision.to_diff_dict(), "model_type": vision.model_type},
        "feature_layer": layer,
        "size": list(preprocessing.size),
        "stride": probe.stride,
        "width": probe.width,
        "prefix": probe.prefix,
        "select": strategy,
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "fit": preprocessing.fit,
    }
    return tower, "pad" if preprocessing.pad else "square"


def _account(directory: Path, config: VistokenConfig) -> Ledger:
    found = find_weights(directory, "model") or find_weights(directory, "pytorch_model")
    if found is None:
        raise WeightsError(f"{directory} holds no weights; fetch the whole checkpoint")
    store = read_files([found])
    with torch.device("meta"):
        model = VistokenForConditionalGeneration(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    ledger = Ledger(shapes, None)
    for key in store:
        _place(ledger, store, key)
    tied = bool(config.tie_word_embeddings)
    wanted = [name for name in shapes if not (tied and name == "lm_head.weight")]
    ledger.require(wanted, file_of(directory, store), {})
    ledger.check(f"{directory} does not fit its config", "fetch the checkpoint again")
    return ledger


def _place(ledger: Ledger, store: TensorStore, key: str) -> None:
    name = key.removeprefix("model.") if _is_new_style(key) else key
    if name.endswith(("rotary_emb.inv_freq", "embeddings.position_ids")):
        ledger.skip(store, key, "computed from the config")
    elif name.startswith(_PROJECTOR):
        ledger.place(store, key, f"model.{name}", "connector")
    elif name.startswith("vision_tower."):
        target = tower_target(name.removeprefix("vision_tower."), ledger.shapes)
        ledger.place(store, key, target, "vision tower")
    else:
        own = name.removeprefix("language_model.")
        ledger.place(store, key, language_target(own), "language model")


def _is_new_style(key: str) -> bool:
    return key.startswith(("model.language_model.", "model.vision_tower.", f"model.{_PROJECTOR}"))


def _processor(source: _Source) -> tuple[VistokenProcessor, str]:
    """The processor, and where its chat template comes from."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.directory)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise WeightsError(
            f"{source.directory} has no tokenizer that can be read ({first}); fetch it again"
        ) from error
    image_token = tokenizer.convert_ids_to_tokens(source.model_config.image_token_id)
    if image_token is None:
        raise WeightsError(
            f"the tokenizer in {source.directory} has no token of id "
            f"{source.model_config.image_token_id}, which config.json names for images"
        )
    tokenizer.padding_side = "left"  # a batch must end where its answers begin
    template, origin = _chat_template(source.directory, tokenizer)
    processor = VistokenProcessor(
        VistokenImageProcessor(source.pipeline.to_dict()),
        tokenizer,
        chat_template=template,
        image_token=image_token,
        image_gap="",  # transformers' processor tokenises the whole prompt in one go
    )
    return processor, origin


def _chat_template(directory: Path, tokenizer: Any) -> tuple[str, str]:
    file = directory / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8"), "its own"
    old = directory / "chat_template.json"
    if old.is_file():
        return str(read_json(old)["chat_template"]), "its own"
    if isinstance(tokenizer.chat_template, str):
        return tokenizer.chat_template, "its own"
    return load_template(_TEMPLATE), _TEMPLATE


def _write(source: _Source, processor: Any, folder: Path) -> None:
    state: Mapping[str, Tensor] = source.ledger.state()
    config = source.model_config
    config.architectures = ["VistokenForConditionalGeneration"]
    config.dtype = dtype_of(state)
    if config.tie_word_embeddings:
        state = {name: tensor for name, tensor in state.items() if name != "lm_head.weight"}
    write_full(folder, config, processor, state)
    generation = source.directory / "generation_config.json"
    if generation.is_file():
        write_generation_config(folder, read_json(generation))


def _report(source: _Source, out: Path, template: str) -> ConversionReport:
    return ConversionReport(
        source=source.directory,
        out=out,
        kind="llava-hf",
        result="full",
        connector="mlp",
        views=source.pipeline.views.part,
        layout=source.pipeline.layout.part,
        template=template,
        base=None,
        vision_tower=None,
        rows=source.ledger.rows,
    )
