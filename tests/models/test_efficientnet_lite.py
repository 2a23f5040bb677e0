from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModel

from vistoken.convert.lite_checkpoint import convert_state_dict, read_lite_checkpoint
from vistoken.core.errors import DataError, WeightsError
from vistoken.models.towers import EfficientNetLiteConfig, EfficientNetLiteModel, register_towers
from vistoken.models.towers.efficientnet_lite import STRIDE_16_INDEX, plan_blocks, stride_ends

HOUSE_TO_RELEASED = {
    "stem.conv": "_conv_stem",
    "stem.norm": "_bn0",
    "head.conv": "_conv_head",
    "head.norm": "_bn1",
    "expand.conv": "_expand_conv",
    "expand.norm": "_bn0",
    "depthwise.conv": "_depthwise_conv",
    "depthwise.norm": "_bn1",
    "project.conv": "_project_conv",
    "project.norm": "_bn2",
}


@pytest.fixture
def tower() -> EfficientNetLiteModel:
    torch.manual_seed(0)
    return EfficientNetLiteModel(EfficientNetLiteConfig()).eval()


def released_state_dict(tower: EfficientNetLiteModel) -> dict[str, torch.Tensor]:
    """The tower's own weights under the names of the released file, with its classifier."""
    released = {"_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}
    for key, tensor in tower.state_dict().items():
        parts = key.split(".")
        prefix = f"_blocks.{parts[1]}." if parts[0] == "blocks" else ""
        module = ".".join(parts[-3:-1])
        released[f"{prefix}{HOUSE_TO_RELEASED[module]}.{parts[-1]}"] = tensor
    return released


def test_lite0_is_the_published_network() -> None:
    with torch.device("meta"):
        tower = EfficientNetLiteModel(EfficientNetLiteConfig())
    classifier = 1280 * 1000 + 1000
    assert sum(p.numel() for p in tower.parameters()) + classifier == 4_652_008


@pytest.mark.parametrize(
    ("width", "depth", "blocks", "stride_16", "last"),
    [
        (1.0, 1.0, 16, 112, 320),
        (1.0, 1.1, 21, 112, 320),
        (1.1, 1.2, 21, 120, 352),
        (1.2, 1.4, 24, 136, 384),
        (1.4, 1.8, 30, 160, 448),
    ],
)
def test_multipliers_scale_all_but_stem_and_head(
    width: float, depth: float, blocks: int, stride_16: int, last: int
) -> None:
    config = EfficientNetLiteConfig(width_multiplier=width, depth_multiplier=depth)
    assert len(plan_blocks(config)) == blocks
    assert config.hidden_sizes[0] == 32
    assert config.hidden_sizes[STRIDE_16_INDEX] == stride_16
    assert config.hidden_sizes[-2:] == [last, 1280]


def test_maps_at_every_stride(tower: EfficientNetLiteModel) -> None:
    out = tower(torch.randn(2, 3, 384, 384), output_hidden_states=True)
    sides = [192, 192, 96, 48, 24, 12, 12]
    expected = [
        (2, channels, side, side)
        for channels, side in zip(tower.config.hidden_sizes, sides, strict=True)
    ]
    assert [tuple(maps.shape) for maps in out.hidden_states] == expected
    assert expected[STRIDE_16_INDEX] == (2, 112, 24, 24)
    assert out.hidden_states[-1] is out.last_hidden_state


def test_sizes_round_up_and_rows_stay_rows(tower: EfficientNetLiteModel) -> None:
    out = tower(torch.randn(1, 3, 70, 33))
    assert out.last_hidden_state.shape == (1, 1280, 3, 2)
    assert out.hidden_states is None


def test_odd_padding_pixel_is_at_the_bottom_right(tower: EfficientNetLiteModel) -> None:
    """With an even input the first stem output must read pixels 0 to 2, nothing above or left."""
    pixels = torch.zeros(1, 3, 8, 8)
    pixels[..., 3:, :] = 1.0
    pixels[..., :, 3:] = 1.0
    assert torch.equal(tower.stem.conv(pixels)[..., 0, 0], torch.zeros(1, 32))
    pixels[..., 2, 2] = 1.0
    assert tower.stem.conv(pixels)[..., 0, 0].abs().sum() > 0


def test_stride_ends_are_the_last_block_of_each_resolution() -> None:
    blocks = plan_blocks(EfficientNetLiteConfig())
    assert [blocks[index].out_channels for index in stride_ends(blocks)] == [16, 24, 40, 112, 320]


def test_train_mode_changes_neither_output_nor_statistics(tower: EfficientNetLiteModel) -> None:
    pixels = torch.randn(2, 3, 64, 64)
    before = tower(pixels).last_hidden_state
    statistics = tower.stem.norm.running_mean.clone()
    assert torch.equal(tower.train()(pixels).last_hidden_state, before)
    assert torch.equal(tower.stem.norm.running_mean, statistics)


def test_gradients_reach_pixels_and_every_parameter(tower: EfficientNetLiteModel) -> None:
    pixels = torch.randn(1, 3, 64, 64, requires_grad=True)
    tower(pixels).last_hidden_state.square().mean().backward()
    assert pixels.grad is not None
    assert pixels.grad.abs().sum() > 0
    assert [name for name, p in tower.named_parameters() if p.grad is None] == []


def test_round_trip_through_the_auto_classes(tower: EfficientNetLiteModel, tmp_path) -> None:
    register_towers()
    register_towers()
    tower.stem.norm.running_mean.fill_(0.5)
    tower.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is EfficientNetLiteConfig
    again = AutoModel.from_pretrained(tmp_path)
    assert type(again) is EfficientNetLiteModel
    pixels = torch.randn(1, 3, 64, 64)
    assert torch.equal(again(pixels).last_hidden_state, tower(pixels).last_hidden_state)


def test_built_on_the_meta_device() -> None:
    with torch.device("meta"):
        tower = EfficientNetLiteModel(EfficientNetLiteConfig())
        out = tower(torch.empty(1, 3, 384, 384))
    assert out.last_hidden_state.is_meta
    assert out.last_hidden_state.shape == (1, 1280, 12, 12)


def test_pixels_follow_the_weights_dtype(tower: EfficientNetLiteModel) -> None:
    out = tower.to(torch.bfloat16)(torch.randn(1, 3, 64, 64))
    assert out.last_hidden_state.dtype == torch.bfloat16


def test_wrong_pixel_shape_names_the_field(tower: EfficientNetLiteModel) -> None:
    with pytest.raises(DataError, match=r"pixel_values has shape \[3, 64, 64\]"):
        tower(torch.zeros(3, 64, 64))


def test_every_released_key_has_its_place(tower: EfficientNetLiteModel) -> None:
    released = released_state_dict(tower)
    converted = convert_state_dict(released, tower.config)
    own = tower.state_dict()
    assert converted.keys() == own.keys()
    assert len(converted) == len(released) - 2
    assert all(torch.equal(converted[key], own[key]) for key in own)


def test_released_file_loads_and_gives_the_same_maps(
    tower: EfficientNetLiteModel, tmp_path
) -> None:
    torch.save(released_state_dict(tower), tmp_path / "lite0.pth")
    again = read_lite_checkpoint(tmp_path / "lite0.pth", EfficientNetLiteConfig())
    pixels = torch.randn(1, 3, 64, 64)
    assert torch.equal(again(pixels).last_hidden_state, tower(pixels).last_hidden_state)


def test_unknown_missing_and_misshapen_keys_are_named(tower: EfficientNetLiteModel) -> None:
    released = released_state_dict(tower)
    with pytest.raises(WeightsError, match=r"_blocks\.0\._se_reduce\.weight"):
        convert_state_dict(
            {**released, "_blocks.0._se_reduce.weight": torch.zeros(1)}, tower.config
        )
    short = {key: tensor for key, tensor in released.items() if key != "_conv_head.weight"}
    with pytest.raises(WeightsError, match=r"head\.conv\.weight"):
        convert_state_dict(short, tower.config)
    with pytest.raises(WeightsError, match=r"_conv_stem\.weight.*\[1\].*\[32, 3, 3, 3\]"):
        convert_state_dict({**released, "_conv_stem.weight": torch.zeros(1)}, tower.config)


class Runs:
    """A pickled object that would call a function when it is loaded."""

    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize("kind", ["code", "text"])
def test_file_that_is_no_plain_state_dict_is_refused(kind: str, tmp_path, capsys) -> None:
    path = tmp_path / "lite0.pth"
    if kind == "code":
        torch.save({"_fc.bias": Runs()}, path)
    else:
        path.write_text("not a checkpoint")
    with pytest.raises(WeightsError, match=r"lite0\.pth"):
        read_lite_checkpoint(path, EfficientNetLiteConfig())
    assert "executed" not in capsys.readouterr().out
