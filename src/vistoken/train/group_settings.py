"""How each named part of a model is trained: the fields of ``groups``."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

GroupName = Literal["vision", "connector", "spatial", "mechanisms", "language"]
Quantization = Literal["int8", "nf4"]
GROUP_NAMES: tuple[GroupName, ...] = (
    "vision",
    "connector",
    "spatial",
    "mechanisms",
    "language",
)


class Strict(BaseModel):
    """Fields that are fixed once they are read; an unknown one is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LoraConfigFields(Strict):
    """Low-rank adapters on the layers of a part.

    Args:
        r: Rank.
        alpha: Numerator of the scale alpha / r.
        dropout: Dropout on the adapter's input.
        targets: Names of the layers; all of them when None. Of the spatial part also names of the
            modules that hold them; what cannot have an adapter (depthwise kernels, bare tensors)
            is refused when None and stays frozen beside named ones.
    """

    r: int = Field(default=32, ge=1)
    alpha: float = Field(default=64, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: tuple[str, ...] | None = None


class GroupConfig(Strict):
    """How one named part is trained.

    Args:
        train: ``frozen``, ``full``, or ``lora`` (any part but mechanisms).
        lr: Learning rate at the end of the warm-up.
        weight_decay: Decoupled decay of matrices; biases, norms and gains are never decayed.
        lora: Adapter settings for ``train: lora``.
        quantization: Keep the frozen weights under the adapters in ``int8`` or ``nf4``
            (language with ``train: lora`` only).
    """

    train: Literal["frozen", "full", "lora"] = "frozen"
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    lora: LoraConfigFields = LoraConfigFields()
    quantization: Quantization | None = None
