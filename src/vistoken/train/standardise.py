"""Mean and spread of the fused features, measured once on training pictures."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vistoken.core.parts import ConnectorStage, ConnectorState
from vistoken.models.pipeline import anchor_rows

if TYPE_CHECKING:
    from vistoken.models.modeling import VistokenForConditionalGeneration
    from vistoken.train.samples import Encoder

logger = logging.getLogger(__name__)

_EPS = 1e-3
"""Smallest spread: a channel that is always zero stays zero."""


def fusing_stage(
    model: VistokenForConditionalGeneration,
) -> tuple[ConnectorStage, Tensor, Tensor] | None:
    """The stage whose buffers hold mean and spread, with the buffers, if the chain has one."""
    for stage in model.model.multi_modal_projector.stages:
        statistics = stage.channel_statistics()
        if statistics is not None:
            return (stage, *statistics)
    return None


def is_standardised(mean: Tensor, std: Tensor) -> bool:
    """Whether mean and spread were set."""
    return bool((mean != 0).any() or (std != 1).any())


@torch.no_grad()
def standardise(
    model: VistokenForConditionalGeneration,
    encode: Encoder,
    images: Sequence[Path],
    batch: int = 8,
) -> None:
    """Set the fusing stage's mean and spread per channel from pictures; no such stage, no work.

    Args:
        model: Changed in place.
        encode: Gives pictures' features.
        images: Some hundred training pictures.
        batch: Pictures at a time.
    """
    found = fusing_stage(model)
    if found is None or is_standardised(*found[1:]):
        return
    stage, mean_buffer, std_buffer = found
    total = torch.zeros(mean_buffer.shape, dtype=torch.float64)
    squares = torch.zeros_like(total)
    count = 0
    for start in range(0, len(images), batch):
        pictures = encode(images[start : start + batch])
        features = pictures.tower_features
        if features is None:
            features, _ = model.model.encode(pictures.pixel_values, pictures.view_table)
        wide = [tuple(feature_map.float() for feature_map in maps) for maps in features]
        state = ConnectorState(pictures.view_table, anchor_rows(pictures.view_table), wide)
        for tokens in stage(state).tokens:
            values = tokens.double().cpu()
            total += values.sum(0)
            squares += values.square().sum(0)
            count += len(values)
    mean = total / count
    spread = (squares / count - mean.square()).clamp_min(0).sqrt().clamp_min(_EPS)
    mean_buffer.copy_(mean)
    std_buffer.copy_(spread)
    logger.info("standardised %d channels over %d pictures", len(mean), len(images))
