"""House vision towers: Hugging Face models for encoders that `transformers` does not have."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel

from vistoken.models.towers.efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteModel

__all__ = ["EfficientNetLiteConfig", "EfficientNetLiteModel", "register_towers"]


def register_towers() -> None:
    """Make the house towers known to `AutoConfig` and `AutoModel`; calling it twice is harmless."""
    AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig, exist_ok=True)
    AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteModel, exist_ok=True)
