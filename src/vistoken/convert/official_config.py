"""The ``config.json`` of an official LLaVA or LLaVA-SP release, in this package's terms."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any, Literal

from transformers import CONFIG_MAPPING

from vistoken.core.errors import UsageError, WeightsError
from vistoken.models.templates import canonical_name

# model_type of a release -> that of its language model, and the template it was trained with
FAMILIES = {
    "llava": ("llama", "vicuna-v1"),
    "llava_llama": ("llama", "vicuna-v1"),
    "llava_mistral": ("mistral", "mistral"),
    "llava_qwen": ("qwen2", "chatml"),
}

_LLAMA_3_VOCABULARY = 128_000

_GEOMETRY = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)


@dataclass(frozen=True)
class OfficialSettings:
    """What a release's config decides.

    Args:
        text: Config of its language model, with ``model_type``.
        tower: What it calls its vision tower.
        feature_layer: Index into the tower's hidden states.
        select: Whether tokens before the grid (CLS) are dropped or kept.
        views: Part spec of the view function.
        layout: Part spec of the layout.
        template: Chat template.
    """

    text: dict[str, Any]
    tower: str | None
    feature_layer: int
    select: Literal["default", "full"]
    views: dict[str, Any]
    layout: dict[str, Any]
    template: str


def read_settings(config: dict[str, Any], tile: tuple[int, int], where: str) -> OfficialSettings:
    """Interpret a release's config.

    Args:
        config: Its ``config.json``.
        tile: (height, width) of the vision tower's input.
        where: Names the file in errors.

    Raises:
        WeightsError: A field asks for something that no part here does.
    """
    family, template = _family(config, where)
    if config.get("mm_use_im_start_end"):
        raise WeightsError(
            f"{where} has mm_use_im_start_end, which puts marks around every image; no template "
            "here writes them, so this release cannot be converted"
        )
    layer = config.get("mm_vision_select_layer", -2)
    if not isinstance(layer, int):
        raise WeightsError(f"{where}: mm_vision_select_layer must be a number, got {layer!r}")
    return OfficialSettings(
        text=_text_config(config, family),
        tower=tower_name(config),
        feature_layer=layer,
        select=_select(config, where),
        views=_views(config, tile, where),
        layout=_layout(config, where),
        template=_template(config, template),
    )


def tower_name(config: dict[str, Any]) -> str | None:
    """What a release calls its vision tower."""
    name = config.get("mm_vision_tower") or config.get("vision_tower")
    return None if name is None else str(name)


def base_mismatch(release: dict[str, Any], base: dict[str, Any]) -> str:
    """The first field in which a language model differs from the one that a release names.

    Args:
        release: The release's ``config.json``.
        base: The language model's.

    Returns:
        ``field is x where the release needs y``, or nothing when they agree.
    """
    for name in _GEOMETRY:
        if name in release and name in base and release[name] != base[name]:
            return f"{name} is {base[name]} where the release needs {release[name]}"
    return ""


def _family(config: dict[str, Any], where: str) -> tuple[str, str]:
    """Language model family and the template of its releases."""
    model_type = str(config.get("model_type"))
    if model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise WeightsError(f"{where}: model_type {model_type!r} is not known here (known: {known})")
    family, template = FAMILIES[model_type]
    if family == "llama" and config.get("vocab_size", 0) >= _LLAMA_3_VOCABULARY:
        template = "llama-3"  # these call themselves LLaVA as well, but never saw Vicuna's words
    return family, template


def _text_config(config: dict[str, Any], family: str) -> dict[str, Any]:
    # every other field is the language model's; unknown ones would stay in its config for ever
    known = CONFIG_MAPPING[family]().to_dict()
    names = {*known, "rope_theta", "rope_scaling", "torch_dtype", "dtype"} - {"architectures"}
    values = {name: config[name] for name in sorted(names) if name in config}
    return {**values, "model_type": family}


def _select(config: dict[str, Any], where: str) -> Literal["default", "full"]:
    feature = config.get("mm_vision_select_feature", "patch")
    if feature == "patch":
        return "default"
    if feature == "cls_patch":
        return "full"
    raise WeightsError(
        f"{where}: mm_vision_select_feature must be patch or cls_patch, got {feature!r}"
    )


def _views(config: dict[str, Any], tile: tuple[int, int], where: str) -> dict[str, Any]:
    aspect = config.get("image_aspect_ratio")
    if aspect == "pad":
        return {"part": "pad"}
    if aspect in (None, "square"):
        return {"part": "square"}
    if aspect == "anyres":
        grids = _grids(config.get("image_grid_pinpoints"), tile, where)
        return {"part": "anyres", "options": {"grids": grids}}
    raise WeightsError(
        f"{where}: image_aspect_ratio {aspect!r} has no view function here "
        "(known: pad, square, anyres)"
    )


def _grids(pinpoints: Any, tile: tuple[int, int], where: str) -> list[list[int]]:
    """Pinpoints (width, height) in pixels as tile grids [rows, cols]."""
    if isinstance(pinpoints, str):
        try:
            pinpoints = ast.literal_eval(pinpoints)
        except (ValueError, SyntaxError) as error:
            raise WeightsError(
                f"{where}: image_grid_pinpoints is no list of (width, height) pairs"
            ) from error
    if not isinstance(pinpoints, (list, tuple)) or not pinpoints:
        raise WeightsError(f"{where}: image_aspect_ratio anyres needs image_grid_pinpoints")
    grids = []
    for pair in pinpoints:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise WeightsError(f"{where}: image_grid_pinpoints holds {pair!r}, no (width, height)")
        width, height = pair
        if height % tile[0] or width % tile[1]:
            raise WeightsError(
                f"{where}: pinpoint {width}x{height} is no multiple of the vision tower's "
                f"{tile[1]}x{tile[0]} input; name the right tower with --vision-tower"
            )
        grids.append([height // tile[0], width // tile[1]])
    return grids


def _layout(config: dict[str, Any], where: str) -> dict[str, Any]:
    merge = config.get("mm_patch_merge_type", "flat")
    if merge not in ("flat", "spatial", "spatial_unpad"):
        raise WeightsError(f"{where}: mm_patch_merge_type {merge!r} has no layout here")
    if config.get("image_aspect_ratio") != "anyres" or merge == "flat":
        return {"part": "plain"}  # one view per image is never merged, whatever the type says
    if merge == "spatial_unpad":
        return {"part": "anyres-unpad"}
    raise WeightsError(
        f"{where}: mm_patch_merge_type 'spatial' without unpad has no layout here "
        "(known: flat, spatial_unpad)"
    )


def _template(config: dict[str, Any], default: str) -> str:
    version = config.get("version")
    if not isinstance(version, str):
        return default
    try:
        return canonical_name(version)
    except UsageError as error:
        raise WeightsError(f"the release's version {version!r}: {error}") from error
