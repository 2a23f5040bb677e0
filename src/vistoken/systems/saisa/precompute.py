"""What is computed once: an image's visual keys and values, and the split of shared projectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vistoken.core.errors import UsageError
from vistoken.core.parts import FEATURES
from vistoken.models.conversion import convert_mechanism
from vistoken.models.decoder import ReadyKV, project_kv
from vistoken.models.outputs import ImageFeatures
from vistoken.systems.saisa.mechanism import Saisa
from vistoken.systems.saisa.visual_kv import VISUAL_KV, VisualKV

if TYPE_CHECKING:
    from vistoken.models.modeling import VistokenForConditionalGeneration


def find_saisa(model: VistokenForConditionalGeneration) -> Saisa:
    """The mechanism of a model.

    Raises:
        UsageError: It has none.
    """
    found = [mechanism for mechanism in model.model.stack if isinstance(mechanism, Saisa)]
    if not found:
        raise UsageError(
            "this model has no decoder mechanism 'saisa'; its configuration names none"
        )
    return found[0]


@torch.no_grad()
def precompute_visual_kv(
    model: VistokenForConditionalGeneration, features: ImageFeatures
) -> ImageFeatures:
    """Compute every layer's visual keys and values of encoded images, once.

    The result goes in as ``mm_encoder_outputs={"image": ...}`` of any number of calls, at any
    place in a prompt; none of them runs a projector again.

    Args:
        model: A model with the mechanism ``saisa``, in the state in which it will be asked.
        features: What ``get_image_features`` returned.

    Returns:
        The same with ``side["saisa_visual_kv"]``, one :class:`VisualKV` per image.

    Raises:
        UsageError: The model has no such mechanism, or the features came without side outputs.
    """
    saisa = find_saisa(model)
    side = features.side or {}
    if FEATURES not in side:
        raise UsageError(
            "precompute_visual_kv needs the encoder's features; pass what get_image_features "
            "returned as a whole"
        )
    images: list[Tensor] = side[FEATURES]
    return ImageFeatures(
        pooler_output=features.pooler_output,
        token_map=features.token_map,
        side={**side, VISUAL_KV: [_visual_kv(model, saisa, image) for image in images]},
    )


def split_projectors(model: VistokenForConditionalGeneration) -> None:
    """Give each layer its own copy of the shared projector; outputs stay the same.

    This is the step between the first and the second training stage. The configuration then says
    ``projector_sharing: independent``, so that the result saves and loads as what it is.

    Raises:
        UsageError: The model has no mechanism ``saisa``, or its projectors are split already.
    """
    find_saisa(model).projectors.require_shared()
    convert_mechanism(model, Saisa.name, {"projector_sharing": "independent"})


def _visual_kv(model: VistokenForConditionalGeneration, saisa: Saisa, features: Tensor) -> VisualKV:
    language_model: Any = model.model.language_model
    like = next(language_model.parameters())
    layers: list[ReadyKV] = [
        project_kv(language_model, layer, saisa.project(layer, features).to(like))
        for layer in range(language_model.config.num_hidden_layers)
    ]
    return VisualKV(tuple(kv.keys for kv in layers), tuple(kv.values for kv in layers))
