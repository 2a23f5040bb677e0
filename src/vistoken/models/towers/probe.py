"""What a vision tower gives, read from a real forward pass on the meta device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import AutoModel, PreTrainedConfig

from vistoken.core.errors import UsageError
from vistoken.models.encoder import FeatureLayer, hidden_states


@dataclass(frozen=True)
class TowerProbe:
    """Geometry of selected features: pixels per cell, channels, tokens before the grid."""

    stride: int
    width: int
    prefix: int


def probe_tower(
    config: PreTrainedConfig,
    feature_layer: FeatureLayer,
    size: tuple[int, int],
    stride: int | None = None,
) -> TowerProbe:
    """Measure a tower without allocating its weights.

    Args:
        config: Its Hugging Face config.
        feature_layer: Index or indices into its hidden states.
        size: Nominal (height, width) in pixels.
        stride: Pixels per cell when the tower's maps are to be read at another stride than the
            finest selected one; ignored for towers that give tokens.

    Raises:
        UsageError: The layer does not exist, or the output holds no whole grid.
    """
    with torch.device("meta"):
        tower = AutoModel.from_config(config)
        hidden = hidden_states(tower, torch.empty(1, 3, *size))
    layers = [feature_layer] if isinstance(feature_layer, int) else list(feature_layer)
    for layer in layers:
        if not -len(hidden) <= layer < len(hidden):
            raise UsageError(
                f"feature_layer {layer} does not exist: {config.model_type} gives "
                f"{len(hidden)} hidden states"
            )
    selected = [hidden[layer] for layer in layers]
    if selected[0].dim() == 4:
        finest = max(selected, key=lambda state: state.shape[-2])
        return TowerProbe(
            stride=stride or size[0] // finest.shape[-2],
            width=sum(state.shape[1] for state in selected),
            prefix=0,
        )
    patch = _square(config.patch_size)
    cells = (size[0] // patch) * (size[1] // patch)
    prefix = selected[0].shape[1] - cells
    if prefix < 0:
        raise UsageError(
            f"{config.model_type} gives {selected[0].shape[1]} tokens for {size[0]}x{size[1]} "
            f"pixels, fewer than its {size[0] // patch}x{size[1] // patch} grid of patches"
        )
    return TowerProbe(patch, sum(state.shape[2] for state in selected), prefix)


def _square(patch: int | Sequence[int]) -> int:
    """Side of a patch; some towers name both sides."""
    if isinstance(patch, int):
        return patch
    if len(set(patch)) != 1:
        raise UsageError(
            f"the patches of this tower are {patch} pixels; only square ones can be used"
        )
    return patch[0]
