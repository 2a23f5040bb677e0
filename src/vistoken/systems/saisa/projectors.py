"""The projectors that bring encoder features into the layers' self-attention input space."""

from __future__ import annotations

import copy

import torch.nn.functional as F
from torch import Tensor, nn

from vistoken.core.errors import UsageError
from vistoken.systems.saisa.config import ProjectorSharing


class LayerProjector(nn.Module):
    """``linear_2(gelu(linear_1(x)))``, GELU exact: one layer's visual input.

    Args:
        feature_width: Channels of the encoder's features.
        text_width: The decoder's hidden size.
    """

    def __init__(self, feature_width: int, text_width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(feature_width, text_width)
        self.linear_2 = nn.Linear(text_width, text_width)

    def forward(self, features: Tensor) -> Tensor:
        """Project features (..., feature_width) to (..., text_width)."""
        projected: Tensor = self.linear_2(F.gelu(self.linear_1(features)))
        return projected


class LayerProjectors(nn.ModuleDict):
    """One projector per decoder layer, or one that all layers share.

    Weights are named ``shared.linear_1.weight`` or ``<layer>.linear_1.weight``, so that a
    checkpoint of one form never loads into the other.

    Args:
        sharing: See :class:`~vistoken.systems.saisa.config.SaisaConfig`.
        layers: Decoder layers.
        feature_width: Channels of the encoder's features.
        text_width: The decoder's hidden size.
    """

    def __init__(
        self, sharing: ProjectorSharing, layers: int, feature_width: int, text_width: int
    ) -> None:
        super().__init__()
        self.layers = layers
        names = ["shared"] if sharing == "shared_then_split" else map(str, range(layers))
        for name in names:
            self[name] = LayerProjector(feature_width, text_width)

    @property
    def sharing(self) -> ProjectorSharing:
        """Whether there is still one projector for all layers."""
        return "shared_then_split" if "shared" in self else "independent"

    def of(self, layer: int) -> nn.Module:
        """The projector of a layer.

        Raises:
            UsageError: The language model has more layers than there are projectors.
        """
        if not 0 <= layer < self.layers:
            raise UsageError(
                f"saisa has projectors for {self.layers} layers and layer {layer} was asked for; "
                "the language model is not the one that its configuration describes"
            )
        return self["shared" if "shared" in self else str(layer)]

    def require_shared(self) -> None:
        """Raise UsageError if each layer has its own projector already."""
        if "shared" not in self:
            raise UsageError("saisa's projectors are split already; there is none to share out")

    def split(self) -> None:
        """Give each layer its own copy of the shared projector; what is computed stays the same.

        Raises:
            UsageError: Each layer has its own already.
        """
        self.require_shared()
        shared = self.pop("shared")
        for layer in range(self.layers):
            self[str(layer)] = copy.deepcopy(shared)
