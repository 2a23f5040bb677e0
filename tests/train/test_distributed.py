"""Calls that wrappers see, and who writes when there is one process."""

import pytest
import torch
from torch import nn

from vistoken.core.errors import UsageError
from vistoken.train import distributed
from vistoken.train.distributed import connect, greatest, is_main, main_first, run_through


class _Wrapper(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module
        self.calls = 0

    def forward(self, *args):
        self.calls += 1
        return self.module(*args)


def test_a_wrapper_sees_the_call_and_the_module_is_left_as_it_was() -> None:
    module = nn.Linear(2, 2)
    wrapper = _Wrapper(module)
    value = run_through(wrapper, module, lambda: module(torch.ones(1, 2)))
    assert torch.equal(value, module(torch.ones(1, 2)))
    assert wrapper.calls == 1
    assert "forward" not in module.__dict__
    assert run_through(module, module, lambda: "direct") == "direct"

    own = module.forward
    module.forward = own  # as accelerate does for mixed precision

    def fail():
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        run_through(wrapper, module, fail)
    assert module.__dict__["forward"] is own


def test_one_process_is_the_main_one(monkeypatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    connect()
    assert is_main()
    with main_first() as main:
        assert main
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UsageError, match="RANK is not set"):
        connect()


def test_processes_decide_by_the_same_clock(monkeypatch) -> None:
    assert greatest(0.5) == 0.5
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.dist, "get_world_size", lambda: 3)

    def gather(into, own):
        into[:] = [0.5, own, 2.0]

    monkeypatch.setattr(distributed.dist, "all_gather_object", gather)
    assert greatest(1.0) == 2.0
