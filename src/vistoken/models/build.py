"""Building a model: from a recipe and its weight sources, or from a light checkpoint."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
)

from vistoken.core.errors import WeightsError
from vistoken.core.parts import Layout
from vistoken.core.registry import load_part
from vistoken.models.checkpoint import ADAPTER, WEIGHTS, load_adapter, load_own_state
from vistoken.models.configuration import VistokenConfig, config_from_dict
from vistoken.models.image_processing import VistokenImageProcessor
from vistoken.models.modeling import VistokenForConditionalGeneration
from vistoken.models.processing import VistokenProcessor
from vistoken.models.recipe import Recipe
from vistoken.models.references import (
    Reference,
    is_random,
    locate,
    random_seed,
    read_references,
    seeded,
)
from vistoken.models.templates import load_template

LOADING_ERRORS = (OSError, RuntimeError, ValueError, SafetensorError, UnpicklingError)
"""What transformers raises for weights that are absent, damaged, unsafe or do not fit."""

IMAGE_TOKEN = "<image>"


def build(
    recipe: Recipe, dtype: torch.dtype = torch.float32
) -> tuple[VistokenForConditionalGeneration, VistokenProcessor]:
    """Build a recipe's model: towers and language model from their sources, the rest initialised.

    Args:
        recipe: The recipe.
        dtype: Floating type of all weights.

    Returns:
        The model in evaluation mode and its processor.

    Raises:
        WeightsError: A source is missing or does not fit.
    """
    with seeded(recipe.seed):
        language_model = load_language_model(
            recipe.language_model.source,
            recipe.language_model.config,
            dtype,
            recipe.language_model.layers,
        )
        config = recipe.model_config_for(language_model.config.to_dict())
        config.layout_config = complete_layout(config, _tokenizer(recipe))
        model = _assemble(config, language_model, [t.source for t in recipe.towers], dtype)
    return model, make_processor(recipe, config)


def meta_model(recipe: Recipe) -> VistokenForConditionalGeneration:
    """The recipe's model on the meta device: shapes and counts without memory."""
    with torch.device("meta"):
        return VistokenForConditionalGeneration(recipe.model_config_for()).eval()


def make_processor(recipe: Recipe, config: VistokenConfig) -> VistokenProcessor:
    """The recipe's processor; adds the image token to its tokenizer."""
    tokenizer = _tokenizer(recipe)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    tokenizer.padding_side = "left"  # generation goes on from the last token
    if tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) != config.image_token_id:
        raise WeightsError(
            f"the tokenizer gives {IMAGE_TOKEN} id {tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)}, "
            f"the language model has {config.image_token_id} rows; they do not belong together"
        )
    return VistokenProcessor(
        VistokenImageProcessor(recipe.pipeline(config).to_dict()),
        tokenizer,
        chat_template=load_template(recipe.template),
    )


def complete_layout(config: VistokenConfig, tokenizer: Any) -> dict[str, Any]:
    """The layout's part spec with what only the tokenizer and the language model know.

    Raises:
        UsageError: They do not have what the layout needs.
    """
    spec = config.pipeline().layout
    part: type[Layout] = load_part("layout", spec.part)
    positions = config.text_config.to_dict().get("max_position_embeddings")
    options = part.options_for(spec.options, tokenizer, positions)
    return {"part": spec.part, "name": spec.name, "options": options}


def _tokenizer(recipe: Recipe) -> Any:
    return load_tokenizer(recipe.language_model.tokenizer or recipe.language_model.source)


def references_of(recipe: Recipe) -> list[Reference]:
    """References to a recipe's towers and language model, as its light checkpoint stores them."""
    return [
        *(Reference.to(f"vision_tower.{t.name}", t.source, recipe.seed) for t in recipe.towers),
        Reference.to("language_model", recipe.language_model.source, recipe.seed),
    ]


def load_light(
    directory: Path, config: VistokenConfig, dtype: torch.dtype
) -> VistokenForConditionalGeneration:
    """Compose a light checkpoint: referenced parts, our weights, LoRA injected.

    Raises:
        WeightsError: A reference is missing or has changed, or our weights do not fit.
    """
    references = {reference.part: reference for reference in read_references(directory)}
    names = [spec.name for spec in config.vision_config.specs()]
    missing = {"language_model", *(f"vision_tower.{name}" for name in names)} - set(references)
    if missing:
        raise WeightsError(f"{directory}/references.json lacks {', '.join(sorted(missing))}")
    for reference in references.values():
        reference.verify()
    text_config = config.text_config.to_dict()
    text_config["vocab_size"] = config.image_token_id
    sources = [references[f"vision_tower.{name}"].source for name in names]
    with seeded(random_seed(list(references.values()))):
        language_model = load_language_model(
            references["language_model"].source,
            text_config,
            dtype,
            text_config["num_hidden_layers"],
        )
        model = _assemble(config, language_model, sources, dtype)
    load_own_state(model, directory / WEIGHTS)
    if (directory / ADAPTER).is_dir():
        load_adapter(model, directory / ADAPTER)
    return model.eval()


def load_language_model(
    source: str, config: dict[str, Any], dtype: torch.dtype, layers: int | None = None
) -> Any:
    """A causal language model from a source, or with random weights (``random``).

    Args:
        source: Where its weights are.
        config: Its configuration, for random weights.
        dtype: Floating type of all weights.
        layers: Only its first so many decoder layers; all of them when None.
    """
    if is_random(source):
        values = config if layers is None else {**config, "num_hidden_layers": layers}
        text_config = config_from_dict(values, "language_model")
        return AutoModelForCausalLM.from_config(text_config, dtype=dtype)
    shorter = None
    if layers is not None:
        try:
            shorter = AutoConfig.from_pretrained(locate(source), num_hidden_layers=layers)
        except LOADING_ERRORS as error:
            first = str(error).strip().splitlines()[0]
            raise WeightsError(f"{layers} layers of {source!r} cannot be read: {first}") from error
    return _from_pretrained(AutoModelForCausalLM, source, shorter, dtype)


def load_tokenizer(source: str) -> Any:
    """A tokenizer from a source; ``assets:<name>`` is one that comes with this package."""
    if source.startswith("assets:"):
        with resources.as_file(
            resources.files("vistoken") / "assets" / source.removeprefix("assets:")
        ) as path:
            return AutoTokenizer.from_pretrained(path)
    return AutoTokenizer.from_pretrained(locate(source))


def _assemble(
    config: VistokenConfig, language_model: Any, sources: list[str], dtype: torch.dtype
) -> VistokenForConditionalGeneration:
    text_config = config.text_config
    with torch.device("meta"):
        model = VistokenForConditionalGeneration(config)
    append_image_row(language_model, text_config.vocab_size)
    model.model.language_model = language_model.base_model
    model.lm_head = language_model.get_output_embeddings()
    model.generation_config = language_model.generation_config
    model.generation_config.suppress_tokens = [config.image_token_id]
    towers = [
        load_tower(tower_config, source, dtype)
        for tower_config, source in zip(config.vision_config.tower_configs(), sources, strict=True)
    ]
    if isinstance(model.model.vision_tower, nn.ModuleDict):
        for name, tower in zip(list(model.model.vision_tower), towers, strict=True):
            model.model.vision_tower[name] = tower
    else:
        model.model.vision_tower = towers[0]
    connector, layout = model.model.plan.build()
    model.model.multi_modal_projector, model.model.layout = connector.to(dtype), layout.to(dtype)
    model.model.build_mechanisms(dtype)
    model.tie_weights()
    return model.eval()


def append_image_row(language_model: Any, vocab_size: int) -> None:
    """Grow a language model's vocabulary by zero rows (the image token is never trained)."""
    old = language_model.config.vocab_size
    language_model.resize_token_embeddings(vocab_size, mean_resizing=False)
    with torch.no_grad():
        language_model.get_input_embeddings().weight[old:] = 0
        language_model.get_output_embeddings().weight[old:] = 0


def load_tower(config: PreTrainedConfig, source: str, dtype: torch.dtype) -> nn.Module:
    """A vision tower from a source, or with random weights (``random``)."""
    if is_random(source):
        return AutoModel.from_config(config, dtype=dtype)
    with torch.device("meta"):
        tower_class = type(AutoModel.from_config(config))
    return _from_pretrained(tower_class, source, config, dtype)


def _from_pretrained(
    loader: Any, source: str, config: PreTrainedConfig | None, dtype: torch.dtype
) -> nn.Module:
    options = {} if config is None else {"config": config}
    try:
        model, report = loader.from_pretrained(
            locate(source), dtype=dtype, output_loading_info=True, **options
        )
    except LOADING_ERRORS as error:
        first = str(error).strip().splitlines()[0]
        raise WeightsError(f"weights {source!r} cannot be loaded: {first}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise WeightsError(
            f"weights {source!r} lack {len(missing)} tensors that the model needs, "
            f"the first is {missing[0]}"
        )
    return model
