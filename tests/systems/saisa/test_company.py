"""SAISA beside other mechanisms: what they compute together, and the pairs that are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vistoken.core.errors import UsageError
from vistoken.core.parts import FEATURES
from vistoken.models.decoder import (
    BaseMechanism,
    Inject,
    LayerPlan,
    MechanismStack,
    SequenceState,
)
from vistoken.systems.saisa.config import NaavitConfig
from vistoken.systems.saisa.naavit import Naavit

from .conftest import WIDTH
from .prompts import make_prompts

BATCH = [[3, -9, 5], [-4, 2, -4, 6], [7]]
CLOSE = {"rtol": 0, "atol": 1e-5}


class Overwrite(BaseMechanism):
    """What SAISA is equal to: visual rows of an ordinary decoder, replaced before every layer."""

    name = "overwrite"

    def __init__(self, saisa: Any) -> None:
        self.saisa = saisa

    def before_layer(self, layer: int, state: SequenceState) -> SequenceState:
        rows = self.saisa.project(layer, torch.cat(state.side[FEATURES]))
        state.hidden = state.hidden.masked_scatter(state.visual[..., None], rows)
        return state


class ByPlace(BaseMechanism):
    """Stands for soft masks and for pruned keys: some keys count less, others not at all."""

    name = "by-place"

    def plan(self, layer: int, state: SequenceState) -> LayerPlan:
        places = state.keys().position_ids
        bias = -0.7 * (places % 4).float()
        hidden = (places % 5 == 3) & state.keys().visual
        return LayerPlan(key_bias=bias[:, None, None], mask=~hidden[:, None, None])


class Injects(BaseMechanism):
    """Also wants to say what visual rows are."""

    name = "injects"

    def plan(self, layer: int, state: SequenceState) -> LayerPlan:
        rows = state.visual
        content = torch.zeros(int(rows.sum()), state.hidden.shape[-1])
        return LayerPlan(query_rows=~rows, inject=(Inject(rows, lambda _: content),))


def text_of(tiny: Any, prompts: Any, *mechanisms: Any) -> Tensor:
    with torch.no_grad():
        hidden = tiny(prompts, stack=MechanismStack(mechanisms), use_cache=False)
    rows: Tensor = hidden.last_hidden_state[prompts.text]
    return rows


@pytest.mark.parametrize("padding", ["left", "right"])
def test_masks_and_biases_of_another_act_on_visual_keys(tiny: Any, padding: str) -> None:
    prompts = make_prompts(BATCH, WIDTH, padding)
    expected = text_of(tiny, prompts, Overwrite(tiny.saisa), ByPlace())
    for both in ((tiny.saisa, ByPlace()), (ByPlace(), tiny.saisa)):
        torch.testing.assert_close(text_of(tiny, prompts, *both), expected, **CLOSE)
    assert (text_of(tiny, prompts, tiny.saisa) - expected).abs().max() > 1e-2


def test_naavit_has_nothing_left_to_do(gqa: Any) -> None:
    """It sends visual rows through the FFN, SAISA does not: what both want is left."""
    prompts = make_prompts(BATCH, WIDTH)
    alone = text_of(gqa, prompts, gqa.saisa)
    for both in ((gqa.saisa, Naavit(NaavitConfig())), (Naavit(NaavitConfig()), gqa.saisa)):
        torch.testing.assert_close(text_of(gqa, prompts, *both), alone, **CLOSE)


def test_a_second_source_of_visual_rows_is_refused(gqa: Any) -> None:
    prompts = make_prompts(BATCH, WIDTH)
    with pytest.raises(UsageError, match="inject keys and values into the same rows"):
        text_of(gqa, prompts, gqa.saisa, Injects())
    with pytest.raises(UsageError, match="'saisa' is configured 2 times"):
        text_of(gqa, prompts, gqa.saisa, gqa.saisa)


@pytest.mark.parametrize("mechanism", ["saisa", "naavit", "yopo"])
def test_families_that_the_loop_does_not_know_are_refused(
    mechanism: str, build_pico: Any, pico_saisa: Any
) -> None:
    values = {**pico_saisa[0].config.text_config.to_dict(), "model_type": "gemma2", "head_dim": 8}
    lm = {"source": "random", "tokenizer": "assets:pico-tokenizer", "config": values}
    with pytest.raises(UsageError, match="gemma2"):
        build_pico(language_model=lm, mechanisms=[mechanism])
