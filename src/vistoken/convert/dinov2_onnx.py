"""A DINOv2 tower from an ONNX graph in which a `transformers` Dinov2 was the trunk.

Exporting keeps the names of biases and norms but folds each linear weight into a nameless operand
of a MatMul. The Add that follows it carries the bias, and the bias carries the name. The position
table arrives in two nameless pieces, one for the CLS token and one for the patches.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

from vistoken.core.errors import MachineError, WeightsError

TRUNK = "backbone."
OTHER_MODULES = ("decoder.",)

_RENAMED = (
    (re.compile(r"attention\.attention\.query\."), "attention.q_proj."),
    (re.compile(r"attention\.attention\.key\."), "attention.k_proj."),
    (re.compile(r"attention\.attention\.value\."), "attention.v_proj."),
    (re.compile(r"attention\.output\.dense\."), "attention.o_proj."),
)
_LAYER = re.compile(r"encoder\.layer\.(\d+)\.")


def import_onnx() -> Any:
    """Import the optional package `onnx`.

    Raises:
        MachineError: If it is not installed.
    """
    try:
        import onnx
        import onnx.numpy_helper
    except ImportError as error:
        raise MachineError(
            "converting the DINOv2 tower needs the package onnx; install it with"
            " python -m pip install onnx"
        ) from error
    return onnx


def read_dinov2_onnx(path: Path, config: Dinov2Config) -> Dinov2Model:
    """Rebuild the trunk of an ONNX file as a `transformers` model.

    Args:
        path: The graph with its weights inside.
        config: Shape of the tower; with fewer layers than the graph, the deeper ones are left out.

    Returns:
        The tower in float32, in evaluation mode.

    Raises:
        MachineError: If `onnx` is not installed.
        WeightsError: If the graph is unreadable or does not hold exactly such a trunk.
    """
    onnx = import_onnx()
    try:
        graph = onnx.load(path).graph
    except Exception as error:  # protobuf's own errors share no base but Exception
        raise WeightsError(f"{path} is not a readable ONNX graph; fetch it again") from error
    named = named_weights(graph)
    tower = Dinov2Model(config)
    tower.load_state_dict(select_layers(named, tower.state_dict(), config.num_hidden_layers))
    return tower.eval()


def named_weights(graph: Any) -> dict[str, Tensor]:
    """Give every weight of the trunk its `transformers` name.

    Args:
        graph: An `onnx.GraphProto`.

    Returns:
        Tensors under the names of a Dinov2 state dict, linear weights as `[out, in]`.

    Raises:
        WeightsError: If a weight cannot be named.
    """
    onnx = import_onnx()
    weights = {
        item.name: torch.from_numpy(onnx.numpy_helper.to_array(item).copy())
        for item in graph.initializer
        if not item.name.startswith(OTHER_MODULES)
    }
    named = {
        _current_name(name): weights.pop(name) for name in list(weights) if name.startswith(TRUNK)
    }
    for operand, bias in _linear_operands(graph).items():
        if operand in weights:
            weight_name = bias.removesuffix("bias") + "weight"
            named[_current_name(weight_name)] = weights.pop(operand).T.contiguous()
    named["embeddings.position_embeddings"] = _take_position_table(weights)
    if weights:
        raise WeightsError(
            f"ONNX trunk: {len(weights)} weights have no place in a DINOv2, the first is"
            f" {sorted(weights)[0]!r}; the file is of another version than expected"
        )
    return named


def select_layers(
    named: Mapping[str, Tensor], expected: Mapping[str, Tensor], layers: int
) -> dict[str, Tensor]:
    """Keep the first layers and check names and shapes against the tower to be filled.

    Raises:
        WeightsError: If a tensor is missing, left over or of another shape.
    """
    kept = {name: tensor for name, tensor in named.items() if _depth(name) < layers}
    different = sorted(kept.keys() ^ expected.keys())
    if different:
        raise WeightsError(
            f"ONNX trunk: {len(different)} tensors are missing or left over, the first is"
            f" {different[0]!r}; the file is of another version than expected"
        )
    for name, tensor in kept.items():
        if tensor.shape != expected[name].shape:
            raise WeightsError(
                f"ONNX trunk: {name!r} is {list(tensor.shape)} and should be"
                f" {list(expected[name].shape)}; the file is of another version than expected"
            )
    return kept


def _linear_operands(graph: Any) -> dict[str, str]:
    """Map the weight operand of every MatMul to the bias that the next Add applies."""
    weight_of_output = {
        node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"
    }
    operands: dict[str, str] = {}
    for node in graph.node:
        if node.op_type != "Add":
            continue
        products = [name for name in node.input if name in weight_of_output]
        biases = [name for name in node.input if name.endswith(".bias")]
        if len(products) == 1 and len(biases) == 1:
            operands[weight_of_output[products[0]]] = biases[0]
    return operands


def _take_position_table(weights: dict[str, Tensor]) -> Tensor:
    pieces = sorted(
        (name for name, tensor in weights.items() if tensor.ndim == 3 and len(tensor) == 1),
        key=lambda name: weights[name].shape[1],
    )
    if len(pieces) != 2 or weights[pieces[0]].shape[1] != 1:
        raise WeightsError(
            "ONNX trunk: the position table was not found as one CLS row and one patch table; the"
            " file is of another version than expected"
        )
    return torch.cat([weights.pop(name) for name in pieces], dim=1)


def _current_name(name: str) -> str:
    name = name.removeprefix(TRUNK)
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    return name


def _depth(name: str) -> int:
    layer = _LAYER.match(name)
    return -1 if layer is None else int(layer.group(1))
