from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from vistoken.convert.dinov2_onnx import read_dinov2_onnx
from vistoken.core.errors import WeightsError

onnx = pytest.importorskip("onnx")

OLD_NAMES = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
}


def config(layers: int) -> Dinov2Config:
    return Dinov2Config(
        hidden_size=8,
        num_hidden_layers=layers,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        use_mask_token=False,
    )


def old_name(name: str) -> str:
    for new, old in OLD_NAMES.items():
        name = name.replace(new, old)
    return "backbone." + name


def exported_graph(tower: Dinov2Model, path: Path, extra: dict[str, torch.Tensor]) -> None:
    """Write what exporting leaves of a model: names for biases and norms, none for linears."""
    weights: dict[str, torch.Tensor] = {"decoder.final_conv.bias": torch.zeros(1), **extra}
    nodes = []
    for number, (name, tensor) in enumerate(tower.state_dict().items()):
        if name == "embeddings.position_embeddings":
            weights["onnx::Concat_1"], weights["onnx::Reshape_2"] = tensor[:, :1], tensor[:, 1:]
        elif tensor.ndim == 2:
            operand, bias = f"onnx::MatMul_{number + 100}", old_name(name.replace("weight", "bias"))
            weights[operand] = tensor.T
            product = f"product_{number}"
            nodes.append(onnx.helper.make_node("MatMul", ["input", operand], [product]))
            nodes.append(onnx.helper.make_node("Add", [bias, product], [f"sum_{number}"]))
        else:
            weights[old_name(name)] = tensor
    initializers = [
        onnx.numpy_helper.from_array(tensor.contiguous().numpy(), name)
        for name, tensor in weights.items()
    ]
    graph = onnx.helper.make_graph(nodes, "trunk", [], [], initializers)
    onnx.save(onnx.helper.make_model(graph), path)


@pytest.fixture
def tower() -> Dinov2Model:
    torch.manual_seed(0)
    return Dinov2Model(config(layers=3)).eval()


def test_first_layers_come_back_and_give_the_same_states(
    tower: Dinov2Model, tmp_path: Path
) -> None:
    exported_graph(tower, tmp_path / "trunk.onnx", {})
    short = read_dinov2_onnx(tmp_path / "trunk.onnx", config(layers=2))
    pixels = torch.randn(1, 3, 28, 28)
    expected = tower(pixels, output_hidden_states=True).hidden_states
    states = short(pixels, output_hidden_states=True).hidden_states
    assert len(states) == 3
    for index, state in enumerate(states):
        torch.testing.assert_close(state, expected[index], rtol=0, atol=0)


def test_weight_without_a_place_is_named(tower: Dinov2Model, tmp_path: Path) -> None:
    exported_graph(tower, tmp_path / "trunk.onnx", {"onnx::MatMul_9": torch.zeros(8, 8)})
    with pytest.raises(WeightsError, match="onnx::MatMul_9"):
        read_dinov2_onnx(tmp_path / "trunk.onnx", config(layers=3))


def test_trunk_with_too_few_layers_is_named(tower: Dinov2Model, tmp_path: Path) -> None:
    exported_graph(tower, tmp_path / "trunk.onnx", {})
    with pytest.raises(WeightsError, match=r"encoder\.layer\.3\."):
        read_dinov2_onnx(tmp_path / "trunk.onnx", config(layers=4))


def test_file_that_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "trunk.onnx").write_bytes(b"\xff" * 64)
    with pytest.raises(WeightsError, match=r"trunk\.onnx is not a readable ONNX graph"):
        read_dinov2_onnx(tmp_path / "trunk.onnx", config(layers=3))
