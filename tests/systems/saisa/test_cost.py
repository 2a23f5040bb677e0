"""What SAISA costs and saves, at full size without memory, and counted against what runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vistoken.core.parts import FEATURES
from vistoken.core.tables import VIEW
from vistoken.models.build import meta_model
from vistoken.models.conversion import convert_mechanism
from vistoken.models.decoder import MechanismStack
from vistoken.models.plan_cost import DecoderCost, count_plans, prompt_map
from vistoken.models.recipe import load_recipe
from vistoken.systems.saisa.config import NaavitConfig
from vistoken.systems.saisa.naavit import Naavit

from .conftest import WIDTH
from .prompts import make_prompts

SLOTS, FEATURE_WIDTH, LAYERS, HIDDEN, INNER = 576, 1024, 32, 4096, 11008


@pytest.fixture(scope="module")
def big() -> Any:
    """The 7B model on the meta device."""
    return meta_model(load_recipe("saisa-7b"))


def picture_map(model: Any) -> Tensor:
    height, width = model.model.plan.spec.towers[0].size
    table = VIEW.make(1, height=height, width=width, bottom=height, right=width)
    return model.model.plan.token_map(table)


def cost(model: Any, text: int, stack: MechanismStack | None = None) -> DecoderCost:
    table = prompt_map([picture_map(model)], 20, text - 20)
    side = {FEATURES: [torch.empty(SLOTS, FEATURE_WIDTH, device="meta")]}
    chosen = model.model.stack if stack is None else stack
    return count_plans(model.model.language_model, chosen, table, side)


def formula(text: int) -> tuple[int, int]:
    """FLOPs of SAISA and of a dense decoder, by the paper-and-pencil convention."""
    n, t, d = text + SLOTS, text, HIDDEN
    saisa = 4 * t * d**2 + 4 * n * d**2 + 4 * t * n * d + 6 * t * d * INNER
    saisa += 2 * SLOTS * (FEATURE_WIDTH * d + d**2)
    return LAYERS * saisa, LAYERS * (8 * n * d**2 + 4 * n**2 * d + 6 * n * d * INNER)


@pytest.mark.parametrize(("text", "ratio"), [(32, 0.302), (64, 0.336), (100, 0.371)])
def test_prefill_flops(big: Any, text: int, ratio: float) -> None:
    saisa, dense = cost(big, text), cost(big, text, MechanismStack())
    assert (saisa.prefill.flops, dense.prefill.flops) == formula(text)
    assert saisa.prefill.flops / dense.prefill.flops == pytest.approx(ratio, abs=0.001)
    # a further token costs what it costs in LLaVA, and the cache is as large
    assert saisa.decode.flops == dense.decode.flops
    assert saisa.prefill.cache_bytes() == dense.prefill.cache_bytes() == (text + SLOTS) * 524_288


def test_naavit_saves_less(big: Any) -> None:
    naavit = cost(big, 64, MechanismStack([Naavit(NaavitConfig())])).prefill.flops
    saisa, dense = formula(64)
    n, t, d = 64 + SLOTS, 64, HIDDEN
    layer = 4 * t * d**2 + 4 * n * d**2 + 4 * t * n * d + 6 * n * d * INNER
    assert naavit == LAYERS * layer
    assert saisa < naavit < dense


def test_parameters(big: Any) -> None:
    own = [p.numel() for n, p in big.named_parameters() if ".mechanisms." in n]
    assert sum(own) == 20_979_712
    model = meta_model(load_recipe("saisa-7b"))
    convert_mechanism(model, "saisa", {"projector_sharing": "independent"})
    own = [p.numel() for n, p in model.named_parameters() if ".mechanisms." in n]
    assert sum(own) == 671_350_784
    assert cost(model, 64).prefill.flops == formula(64)[0]


def test_counted_equals_run(make_tiny: Any) -> None:
    """The plans' count against matrix products that really run, eager attention."""
    tiny = make_tiny()
    tiny.model.set_attn_implementation("eager")
    prompts = make_prompts([[3, -9, 5]], WIDTH)
    counted = count_plans(tiny.model, tiny.stack, prompts.table, prompts.side())
    with torch.no_grad(), FlopCounterMode(display=False) as ran:
        tiny(prompts)
    assert ran.get_total_flops() == counted.prefill.flops
