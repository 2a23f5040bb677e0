"""Parameter names of the official LLaVA-SP releases and ours, both ways.

Releases do not record their variant; it is told by the names present. Our names are relative to
the stage, which lives under ``multi_modal_projector.<stage>.``. A plain LLaVA-1.5 release (only
``mm_projector``) is the case ``spatial_tokens: none``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from torch import Tensor

from vistoken.core.errors import WeightsError

ReleaseVariant = Literal["cropping", "pooling", "none"]

OFFICIAL_KEYS: dict[str, str] = {
    "conv_CM.": "detail_integrator.detail.",
    "query_projector.": "detail_integrator.query.",
    "key_projector.": "detail_integrator.key.",
    "value_projector.": "detail_integrator.value.",
    "conv_linear.1.": "spatial_projector.",
    "mm_projector.0.": "patch_projector.linear_1.",
    "mm_projector.2.": "patch_projector.linear_2.",
}
"""Official stem -> ours; the six ``conv_<k>`` are numbered by size (see :func:`to_house`)."""

_KERNEL = re.compile(r"conv_(\d+)\.(1\.)?weight")
_PREFIXES = ("base_model.model.model.", "model.")


def short_key(key: str) -> str:
    """Official name without the prefixes that wrappers add."""
    for prefix in _PREFIXES:
        if key.startswith(prefix):
            return key.removeprefix(prefix)
    return key


def is_connector_key(key: str) -> bool:
    """Whether an official name belongs to the connector."""
    short = short_key(key)
    return _KERNEL.fullmatch(short) is not None or short.startswith(tuple(OFFICIAL_KEYS))


def infer_variant(keys: Iterable[str]) -> ReleaseVariant:
    """Tell the variant from the official names present.

    Raises:
        WeightsError: Names of both variants, or no connector at all.
    """
    short = [short_key(key) for key in keys]
    matches = [match for match in map(_KERNEL.fullmatch, short) if match]
    if not matches:
        if "mm_projector.0.weight" in short:
            return "none"
        raise WeightsError(
            "found neither conv_<k> nor mm_projector weights; "
            "point to a LLaVA-SP or LLaVA-1.5 release, or to its projector file"
        )
    # The largest scale is the whole grid, which is not pooled: it never has the extra ".1".
    below_largest = sorted(matches, key=lambda match: int(match[1]))[:-1]
    pooled = {match[2] is not None for match in below_largest}
    if not pooled:  # a single scale: only cropping's projection has a bias
        pooled = {"conv_linear.1.bias" not in short}
    if pooled == {True}:
        return "pooling"
    if pooled == {False}:
        return "cropping"
    raise WeightsError(
        "the conv_<k> weights mix names of the cropping and the pooling variant; "
        "the release directory holds files of two models"
    )


def infer_options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Options of ``llava-sp`` that fit a release's connector weights (official names)."""
    short = {short_key(key): value for key, value in state.items()}
    variant = infer_variant(short)
    if "mm_projector.0.weight" not in short:
        raise WeightsError("the release has no mm_projector.0.weight; it is incomplete")
    options: dict[str, Any] = {"mlp_hidden": short["mm_projector.0.weight"].shape[0]}
    if variant == "none":
        return {**options, "spatial_tokens": "none"}
    scales = sorted(int(match[1]) for match in map(_KERNEL.fullmatch, short) if match)
    options |= {"variant": variant, "scales": scales, "detail": "conv_CM.weight" in short}
    largest = [value for key, value in short.items() if key.startswith(f"conv_{scales[-1]}.")]
    options["width"] = largest[0].shape[0]
    if options["detail"]:
        options["detail_kernel"] = list(short["conv_CM.weight"].shape[-2:])
    return options


def to_house(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a release's connector weights to ours.

    Raises:
        WeightsError: A name that is none of the connector's.
    """
    short = {short_key(key): value for key, value in state.items()}
    scales = sorted(int(match[1]) for match in map(_KERNEL.fullmatch, short) if match)
    renamed: dict[str, Tensor] = {}
    for key, value in short.items():
        match = _KERNEL.fullmatch(key)
        if match:
            renamed[f"spatial_extractor.kernels.{scales.index(int(match[1]))}.weight"] = value
            continue
        stem = next((stem for stem in OFFICIAL_KEYS if key.startswith(stem)), None)
        if stem is None:
            raise WeightsError(f"{key!r} is not a connector weight of LLaVA-SP; filter it out")
        renamed[OFFICIAL_KEYS[stem] + key.removeprefix(stem)] = value
    return renamed


def to_official(state: Mapping[str, Tensor], prefix: str = "model.") -> dict[str, Tensor]:
    """Rename our weights to a release's; only full, square kernels have official names.

    Raises:
        WeightsError: A weight that the official code has no name for.
    """
    cropping = "spatial_projector.bias" in state
    stem = "spatial_extractor.kernels."
    scales = [value.shape[-1] for key, value in state.items() if key.startswith(stem)]
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        official = None
        if re.fullmatch(re.escape(stem) + r"\d+\.weight", key):
            scale = value.shape[-1]
            if value.shape[-2] == scale and scales.count(scale) == 1:
                pooled = not cropping and scale != max(scales)
                official = f"conv_{scale}." + ("1." if pooled else "") + "weight"
        else:
            for theirs, ours in OFFICIAL_KEYS.items():
                if key.startswith(ours) and key != "detail_integrator.detail.0.weight":
                    official = theirs + key.removeprefix(ours)
        if official is None:
            raise WeightsError(
                f"{key!r} has no name in the official code; only full kernels of six different "
                "square sizes can be exported"
            )
        renamed[prefix + official] = value
    return renamed
