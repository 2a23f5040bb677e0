"""Kernels from the hub and tensor parallelism, which replace modules, are off under mechanisms."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.distributed import DistributedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from vistoken.core.errors import UsageError
from vistoken.models import VistokenForConditionalGeneration
from vistoken.models.checkpoint import save_full
from vistoken.models.decoder import LayerPlan, MechanismStack, run_decoder

from .mechanisms import BATCH, ROWS, Tell, random_mask, run

Build = Callable[..., PreTrainedModel]
NAAVIT = {"mechanisms": [{"part": "naavit"}]}
KERNELS = "do not run with kernels from the hub.*without use_kernels"
TENSOR = r"do not run with tensor parallelism \(tp_size=2\).*without tp_plan"


@pytest.fixture
def hub_kernel() -> Iterator[str]:
    """An attention function from the hub whose masks are sdpa's, as some are registered."""
    name = "someone/attention"
    AttentionInterface.register(name, sdpa_attention_forward)
    AttentionMaskInterface.register(name, sdpa_mask)
    yield name
    AttentionInterface._global_mapping.pop(name)
    AttentionMaskInterface._global_mapping.pop(name)


@pytest.fixture
def kernelised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels without the package that fetches them: the flag alone is set."""

    def switch(self: Any, use_kernels: bool, *args: Any, **kwargs: Any) -> None:
        self._use_kernels = use_kernels

    monkeypatch.setattr(PreTrainedModel, "set_use_kernels", switch)


def with_naavit(pico: Any) -> Any:
    model = copy.deepcopy(pico[0])
    model.config.decoder_config = copy.deepcopy(NAAVIT)
    model.model.build_mechanisms()
    return model


def test_the_loop_refuses_a_text_model_with_replaced_modules(build: Build, ids: Tensor) -> None:
    some = Tell(LayerPlan(query_rows=torch.ones(1, ROWS, dtype=torch.bool)))
    for flag, value, said in (("_use_kernels", True, KERNELS), ("_tp_size", 2, TENSOR)):
        model = build("llama-gqa")
        setattr(model.model, flag, value)
        with pytest.raises(UsageError, match=said):
            run(model, some, input_ids=ids)
        assert run_decoder(model.model, stack=MechanismStack(), input_ids=ids) is not None
    model.model._tp_size = 1
    assert run(model, some, input_ids=ids).shape[:2] == (BATCH, ROWS)


def test_attention_from_the_hub_is_refused_and_sdpa_runs_once_asked_for(
    build: Build, ids: Tensor, hub_kernel: str
) -> None:
    """Nothing falls back by itself: the name stays until the caller sets another."""
    model = build("llama-gqa")
    plan = LayerPlan(mask=random_mask(1))
    rows = torch.arange(ROWS)[None] > 2
    expected = run(model, Tell(plan), input_ids=ids)
    model.config._attn_implementation = hub_kernel
    for told in (plan, LayerPlan(query_rows=rows)):
        with pytest.raises(UsageError, match=f"'{hub_kernel}' cannot .*sdpa"):
            run(model, Tell(told), input_ids=ids)
        assert model.config._attn_implementation == hub_kernel
    model.set_attn_implementation("sdpa")
    assert torch.equal(run(model, Tell(plan), input_ids=ids), expected)


def test_kernels_are_refused_for_a_model_with_mechanisms(pico: Any, tmp_path: Any) -> None:
    model = with_naavit(pico)
    with pytest.raises(UsageError, match=KERNELS):
        model.use_kernels = True
    with pytest.raises(UsageError, match=KERNELS):
        model.model.set_use_kernels(True)
    model.set_use_kernels(False)
    save_full(model, pico[1], tmp_path / "out")
    with pytest.raises(UsageError, match=KERNELS):
        VistokenForConditionalGeneration.from_pretrained(tmp_path / "out", use_kernels=True)


def test_mechanisms_are_refused_for_a_model_with_kernels(pico: Any, kernelised: None) -> None:
    model = copy.deepcopy(pico[0])
    model.use_kernels = True
    model.config.decoder_config = copy.deepcopy(NAAVIT)
    with pytest.raises(UsageError, match=KERNELS):
        model.model.build_mechanisms()
    assert not len(model.model.stack)


def test_tensor_parallelism_is_refused_before_weights_are_read(
    pico: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_full(with_naavit(pico), pico[1], tmp_path / "out")
    split = DistributedConfig(tp_size=2, tp_plan="auto")
    # the mesh of processes is not what is tested here
    monkeypatch.setattr(
        PreTrainedModel,
        "prepare_distribute_model",
        classmethod(lambda cls, given, **_: (given, None, None)),
    )
    with pytest.raises(UsageError, match=TENSOR):
        VistokenForConditionalGeneration.from_pretrained(tmp_path / "out", distributed_config=split)
