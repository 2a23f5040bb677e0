"""InternLM2's weights as those of a Llama: the same layers, with packed projections."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from vistoken.core.errors import WeightsError

_STEM = "language_model."
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_IN_LAYER = {
    "attention.wo.weight": "self_attn.o_proj.weight",
    "feed_forward.w1.weight": "mlp.gate_proj.weight",
    "feed_forward.w3.weight": "mlp.up_proj.weight",
    "feed_forward.w2.weight": "mlp.down_proj.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
}
_OUTSIDE = {
    "model.tok_embeddings.weight": "model.embed_tokens.weight",
    "model.norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_PACKED = "attention.wqkv.weight"


def split_wqkv(packed: Tensor, heads: int, shared_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Unpack InternLM2's joint projection.

    Args:
        packed (Tensor): (rows, D); per key/value head the rows of its query heads, of its key and
            of its value.
        heads: Query heads, H.
        shared_heads: Key/value heads, G.

    Returns:
        Query (H * E, D), key and value (G * E, D) projections.

    Raises:
        WeightsError: The rows do not divide so.
    """
    groups, left = divmod(heads, shared_heads)
    if left or packed.shape[0] % (shared_heads * (groups + 2)):
        raise WeightsError(
            f"a wqkv of {packed.shape[0]} rows is not made of {heads} query heads and "
            f"{shared_heads} key/value heads"
        )
    slots = packed.unflatten(0, (shared_heads, groups + 2, -1))
    query, key, value = slots.split([groups, 1, 1], dim=1)
    return query.flatten(0, 2), key.flatten(0, 2), value.flatten(0, 2)


def llama_state(tensors: Mapping[str, Tensor], heads: int, shared_heads: int) -> dict[str, Tensor]:
    """Weights of an InternLM2 by the names of a Llama with its head.

    Args:
        tensors: The release's tensors under ``language_model.``, by their own names.
        heads: Query heads.
        shared_heads: Key/value heads.

    Raises:
        WeightsError: A name that an InternLM2 does not have, or a misshapen projection.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        inner = name.removeprefix(_STEM)
        layer = _LAYER.fullmatch(inner)
        place = f"model.layers.{layer[1]}." if layer else ""
        if layer and layer[2] == _PACKED:
            parts = split_wqkv(tensor, heads, shared_heads)
            for kind, part in zip("qkv", parts, strict=True):
                state[f"{place}self_attn.{kind}_proj.weight"] = part
        elif layer and layer[2] in _IN_LAYER:
            state[place + _IN_LAYER[layer[2]]] = tensor
        elif inner in _OUTSIDE:
            state[_OUTSIDE[inner]] = tensor
        else:
            raise WeightsError(
                f"{name} is no tensor of an InternLM2 language model; only InternVL2 releases "
                "with InternLM2 can be read (1B and 4B have other ones)"
            )
    return state
