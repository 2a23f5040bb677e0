"""InternViT's weights as those of transformers' ``internvl_vision``: joint projections split."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from vistoken.core.errors import WeightsError

_STEM = "vision_model."
_LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)")
_IN_LAYER = {
    "attn.proj.weight": "attention.projection_layer.weight",
    "attn.proj.bias": "attention.projection_layer.bias",
    "norm1.weight": "layernorm_before.weight",
    "norm1.bias": "layernorm_before.bias",
    "norm2.weight": "layernorm_after.weight",
    "norm2.bias": "layernorm_after.bias",
    "ls1": "lambda_1",
    "ls2": "lambda_2",
    "mlp.fc1.weight": "mlp.fc1.weight",
    "mlp.fc1.bias": "mlp.fc1.bias",
    "mlp.fc2.weight": "mlp.fc2.weight",
    "mlp.fc2.bias": "mlp.fc2.bias",
}
_OUTSIDE = {
    "embeddings.class_embedding": "embeddings.cls_token",
    "embeddings.position_embedding": "embeddings.position_embeddings",
    "embeddings.patch_embedding.weight": "embeddings.patch_embeddings.projection.weight",
    "embeddings.patch_embedding.bias": "embeddings.patch_embeddings.projection.bias",
}


def tower_state(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of an InternViT by the names of transformers' own implementation.

    Args:
        tensors: The release's tensors under ``vision_model.``, by their own names.

    Raises:
        WeightsError: A name that an InternViT-300M does not have.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        inner = name.removeprefix(_STEM)
        layer = _LAYER.fullmatch(inner)
        place = f"encoder.layer.{layer[1]}." if layer else ""
        if layer and layer[2] in ("attn.qkv.weight", "attn.qkv.bias"):
            kind = layer[2].rsplit(".", 1)[1]
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                state[f"{place}attention.{letter}_proj.{kind}"] = part
        elif layer and layer[2] in _IN_LAYER:
            state[place + _IN_LAYER[layer[2]]] = tensor
        elif inner in _OUTSIDE:
            state[_OUTSIDE[inner]] = tensor
        else:
            raise WeightsError(
                f"{name} is no tensor of an InternViT-300M; releases with the tower of 6B "
                "parameters cannot be read"
            )
    return state
