"""Three lines to an answer: ``model, processor = vistoken.load("nano")``."""

from __future__ import annotations

import logging
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoProcessor

import vistoken.models  # noqa: F401 - registers the Auto classes
from vistoken.convert.nano_parts import ensure_nano_parts
from vistoken.convert.resolve import resolve_model
from vistoken.core.errors import UsageError, WeightsError
from vistoken.models.build import build
from vistoken.models.checkpoint import is_light, merge_adapter
from vistoken.models.device import choose_device, choose_dtype
from vistoken.models.images import open_image
from vistoken.models.modeling import VistokenForConditionalGeneration
from vistoken.models.processing import VistokenProcessor
from vistoken.models.quantize import quantize_language_model
from vistoken.models.recipe import Recipe, load_recipe, recipe_names
from vistoken.models.references import is_random, read_references

logger = logging.getLogger(__name__)

Quantization = Literal["int8", "nf4"]


def load(
    path_or_hub_id: str | Path,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    quantization: Quantization | None = None,
) -> tuple[VistokenForConditionalGeneration, VistokenProcessor]:
    """Load a model for answering questions, ready on its device.

    Args:
        path_or_hub_id: A checkpoint directory, an official LLaVA-SP or LLaVA release (directory
            or hub id; converted once and cached), the name of a recipe whose weights come
            with this package (``nano``) or are random (``pico``), or a recipe's YAML file whose
            weights are all random.
        device: ``auto`` (CUDA, then MPS, then CPU) or a PyTorch device.
        dtype: ``auto`` (what the device does well) or a PyTorch dtype or its name.
        quantization: ``int8`` (torchao) or ``nf4`` (bitsandbytes) weights of the language
            model; towers and connector stay as they are.

    Returns:
        The model in evaluation mode, LoRA folded in, and its processor.

    Raises:
        UsageError: Unknown name or option.
        WeightsError: Weights that are missing, damaged or do not fit.
        MachineError: A device or package that is not there.
    """
    chosen_device = choose_device(device)
    chosen_dtype = choose_dtype(dtype, chosen_device)
    model, processor = _load(str(path_or_hub_id), chosen_dtype)
    if getattr(model, "peft_config", None):
        merge_adapter(model)
    if quantization is not None:
        quantize_language_model(model, quantization)
    return model.to(chosen_device).eval(), processor


def encode_images(
    model: VistokenForConditionalGeneration, processor: VistokenProcessor, images: Any
) -> list[tuple[Tensor, Tensor]]:
    """Visual tokens of pictures, without a prompt.

    Args:
        model: The model.
        processor: Its processor.
        images: A picture or a list of pictures: paths, ``PIL.Image`` or arrays.

    Returns:
        For each picture its visual tokens (N, D) and their TokenMap (N, K).
    """
    pictures = images if isinstance(images, (list, tuple)) else [images]
    inputs = processor.image_processor([open_image(picture) for picture in pictures])
    with torch.inference_mode():
        features = model.get_image_features(**inputs)
    return list(zip(features.pooler_output, features.token_map or [], strict=True))


def _load(name: str, dtype: torch.dtype) -> tuple[Any, Any]:
    if name in recipe_names() and not Path(name).exists():
        return _load_recipe(load_recipe(name), dtype)
    if name.endswith((".yaml", ".yml")) and not Path(name).is_dir():
        train = f"a run configuration that says 'recipe: {name}'"
        return _build_random(load_recipe(name), dtype, train)
    return _load_directory(resolve_model(name), dtype)


def _load_recipe(recipe: Recipe, dtype: torch.dtype) -> tuple[Any, Any]:
    with resources.as_file(resources.files("vistoken") / "assets" / recipe.name) as trained:
        if trained.is_dir() and is_light(trained):
            return _load_directory(trained, dtype)
    return _build_random(recipe, dtype, f"'vistoken train {recipe.name} --data FILE'")


def _build_random(recipe: Recipe, dtype: torch.dtype, train: str) -> tuple[Any, Any]:
    """Build a recipe that says itself that nothing in it is trained; `train` is how to train it."""
    sources = [recipe.language_model.source, *(tower.source for tower in recipe.towers)]
    if all(is_random(source) for source in sources):
        return build(recipe, dtype)
    raise UsageError(
        f"recipe {recipe.name!r} has no trained weights in this package; train it with "
        f"{train}, or name a checkpoint directory or hub id"
    )


def _load_directory(directory: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    if is_light(directory) and any(
        r.source.startswith("nano:") for r in read_references(directory)
    ):
        ensure_nano_parts(logger.warning)  # a download of 200 MB should not go unsaid
    model = VistokenForConditionalGeneration.from_pretrained(directory, dtype=dtype)
    try:
        processor = AutoProcessor.from_pretrained(directory)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise WeightsError(f"the processor in {directory} cannot be loaded: {first}") from error
    return model, processor
