"""The released code's numbers: cropping, enhancement and the whole encoder path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from vistoken.core.parts import ConnectorState, StageContext, TowerInput
from vistoken.core.registry import load_part, make_config
from vistoken.models.encoder import tower_features
from vistoken.systems.inf_llava.config import InfDcmConfig, InfDemConfig
from vistoken.systems.inf_llava.cutting import cut_views
from vistoken.systems.inf_llava.release_keys import InfLlavaKeys
from vistoken.systems.inf_llava.stage import InfDem
from vistoken.systems.inf_llava.views import InfDcm


def read(golden: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    folder = golden / "inf-llava"
    return load_file(folder / f"{name}.safetensors"), json.loads(
        (folder / f"{name}.json").read_text()
    )


def official_weights(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def stage_with(weights: dict[str, Tensor], width: int, grid: tuple[int, int]) -> InfDem:
    """``inf-dem`` with weights by the names below ``spatial_embed``."""
    stage = InfDem(InfDemConfig(), StageContext((width,), width, grid, 40))
    names = InfLlavaKeys.official_names({f"inf-dem.{n}": t for n, t in stage.state_dict().items()})
    state = {
        ours.removeprefix("inf-dem."): weights[theirs.removeprefix("spatial_embed.")]
        for ours, theirs in names.items()
    }
    assert len(state) == len(weights)
    stage.load_state_dict(state, strict=True)
    return stage


def state_of(features: Tensor, n: int, global_views: Any = "all") -> ConnectorState:
    """State of features (V, B, h, w, C) as the view function orders them."""
    rows, cols = features.shape[2:4]
    tower = TowerInput("t", (rows * 7, cols * 7), (0.5,) * 3, (0.5,) * 3, stride=7)
    table = InfDcm(InfDcmConfig(n=n, global_views=global_views), [tower]).view_table(90, 70)
    maps = [view[b] for b in range(features.shape[1]) for view in features]
    return ConnectorState(
        table.repeat(features.shape[1], 1),
        list(range(len(maps))),
        [(m,) for m in maps],
        [m.flatten(0, 1) for m in maps],
        [(rows, cols)] * len(maps),
    )


def test_cropping(golden: Path) -> None:
    tensors, about = read(golden, "dcm_n2")
    n = about["n"]
    views = cut_views(tensors["in.image"], n, (6, 6)).transpose(0, 1)
    assert torch.equal(views[: n * n], tensors["out.local"])
    assert torch.equal(views[n * n : -1], tensors["out.global"])


@pytest.mark.parametrize("name", ["dem_n2", "dem_n3"])
def test_enhancement(golden: Path, name: str) -> None:
    tensors, about = read(golden, name)
    n, side, width = about["n"], about["tokens_per_side"], about["channel"]
    stage = stage_with(official_weights(tensors, "w."), width, (side, side))
    views = tensors["in.features"].unflatten(2, (side, side))
    base = torch.zeros_like(views[:1])  # the mean with nothing is half the enhancement
    with torch.no_grad():
        state = stage(state_of(torch.cat([views, base]), n))
    produced = 2 * torch.stack(state.tokens)
    torch.testing.assert_close(produced, tensors["out.fused"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("global_views", ["all", "live"])
def test_pixels_to_image_features(golden: Path, global_views: str) -> None:
    """End to end; leaving out the strided views that nothing reads changes nothing."""
    tensors, about = read(golden, "encode_images_native")
    n, side = about["n"], about["base_size"]
    clip = CLIPVisionModel(CLIPVisionConfig(**about["vision"])).eval()
    stem = "w.model.vision_tower.vision_tower."
    known = clip.state_dict()
    tower = {
        name if name in known else name.removeprefix("vision_model."): tensor
        for name, tensor in official_weights(tensors, stem).items()
    }
    missing = set(known) - set(tower)
    assert not {name for name in missing if "position_ids" not in name}
    clip.load_state_dict({name: t for name, t in tower.items() if name in known}, strict=False)
    views = cut_views(tensors["in.pixel_values"], n, (side, side))[0]
    if global_views == "live":
        views = torch.cat([views[: n * n], views[-1:]])
    with torch.no_grad():
        _, maps = tower_features(clip, views, about["select_layer"], about["vision"]["patch_size"])
        one_by_one = [
            tower_features(clip, v[None], about["select_layer"], about["vision"]["patch_size"])[1]
            for v in views
        ]
        torch.testing.assert_close(maps, torch.cat(one_by_one), rtol=0, atol=1e-5)
        spatial = official_weights(tensors, "w.model.spatial_embed.")
        width = about["vision"]["hidden_size"]
        stage = stage_with(spatial, width, (4, 4))
        state = stage(state_of(maps[:, None], n, global_views))
        mlp = load_part("project", "mlp")
        context = StageContext((width,), width, (4, 4), 40)
        project = mlp(make_config(mlp.config_class, {}, "mlp"), context)
        project.load_state_dict(
            {
                f"linear_{1 + int(name[0]) // 2}{name[1:]}": tensor
                for name, tensor in official_weights(tensors, "w.model.mm_projector.").items()
            }
        )
        produced = torch.stack(project(state).tokens)
    torch.testing.assert_close(produced, tensors["out.image_features"], rtol=0, atol=5e-5)
