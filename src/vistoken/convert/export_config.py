"""The ``config.json`` of a release, written from ours: the reverse of ``official_config``."""

from __future__ import annotations

from typing import Any

from vistoken.convert.official_config import FAMILIES
from vistoken.core.errors import UsageError
from vistoken.models.configuration import VistokenConfig
from vistoken.models.pipeline import PipelineSpec
from vistoken.models.processing import VistokenProcessor
from vistoken.models.templates import load_template, template_names

# what our tooling adds, or what the release's code derives itself
_OURS = ("_name_or_path", "architectures", "dtype", "rope_parameters", "transformers_version")
_MERGE = {"plain": "flat", "anyres-unpad": "spatial_unpad"}


def official_config(
    config: VistokenConfig, processor: VistokenProcessor, tower: str, where: str
) -> dict[str, Any]:
    """A release's config for a model of ours.

    Args:
        config: The model's config.
        processor: Its processor; its views and chat template are recorded.
        tower: What to call the vision tower.
        where: Names the checkpoint in errors.

    Raises:
        UsageError: Something that the official layout has no field for.
    """
    spec = processor.image_processor.spec
    _refuse(config, spec, where)
    model_type, default = _family(config, where)
    text = {k: v for k, v in config.text_config.to_dict().items() if k not in _OURS}
    values = {
        **text,
        **_rope(config),
        **_views(spec),
        "model_type": model_type,
        "vocab_size": config.image_token_id,
        "torch_dtype": str(config.dtype or "float32").removeprefix("torch."),
        "mm_hidden_size": spec.towers[0].width,
        "mm_patch_merge_type": _MERGE[spec.layout.part],
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "cls_patch" if spec.towers[0].select == "full" else "patch",
        "mm_vision_select_layer": config.vision_config.feature_layers()[0],
        "mm_vision_tower": tower,
        "tokenizer_model_max_length": min(
            processor.tokenizer.model_max_length, config.text_config.max_position_embeddings
        ),
        "tokenizer_padding_side": "right",
        "use_mm_proj": True,
    }
    template = _template(processor, where)
    return values if template == default else {**values, "version": template}


def _refuse(config: VistokenConfig, spec: PipelineSpec, where: str) -> None:
    problem = ""
    if len(spec.towers) > 1:
        problem = f"{len(spec.towers)} vision towers, one is possible"
    elif not isinstance(config.vision_config.feature_layers()[0], int):
        problem = "features of several layers, one is possible"
    elif config.decoder_config["mechanisms"]:
        problem = "decoder mechanisms, which releases do not have"
    elif spec.views.part not in ("pad", "square", "anyres"):
        problem = f"the views {spec.views.part!r}; pad, square and anyres are possible"
    elif spec.layout.part not in _MERGE:
        problem = f"the layout {spec.layout.part!r}; {' and '.join(_MERGE)} are possible"
    if problem:
        raise UsageError(f"{where} cannot be written in the official layout: it has {problem}")


def _family(config: VistokenConfig, where: str) -> tuple[str, str]:
    """model_type of a release, and the template that goes without saying."""
    text = config.text_config.model_type
    found = {family: (name, template) for name, (family, template) in FAMILIES.items()}
    if text not in found:
        raise UsageError(
            f"{where} cannot be written in the official layout: its language model is {text!r}, "
            f"known are {', '.join(found)}"
        )
    return found[text]


def _template(processor: VistokenProcessor, where: str) -> str:
    for name in template_names():
        if processor.chat_template == load_template(name):
            return name
    raise UsageError(
        f"{where} cannot be written in the official layout: its chat template is none of "
        f"{', '.join(template_names())}, and a release records no other"
    )


def _rope(config: VistokenConfig) -> dict[str, Any]:
    """Rotary settings as older configs have them."""
    rope = dict(config.text_config.rope_parameters)
    theta = rope.pop("rope_theta")
    kind = rope.pop("rope_type", "default")
    return {
        "rope_theta": theta,
        "rope_scaling": None if kind == "default" else rope | {"type": kind},
    }


def _views(spec: PipelineSpec) -> dict[str, Any]:
    if spec.views.part != "anyres":
        return {"image_aspect_ratio": spec.views.part}
    height, width = spec.towers[0].size
    grids = spec.view_function().config.grids
    pinpoints = [[cols * width, rows * height] for rows, cols in grids]
    return {"image_aspect_ratio": "anyres", "image_grid_pinpoints": pinpoints}
