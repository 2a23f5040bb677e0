"""Several processes as one: who writes, who waits, and calls that every wrapper sees."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from vistoken.core.errors import UsageError

Result = TypeVar("Result")


def connect(cpu: bool = False) -> None:
    """Join the other processes of this run, if a launcher started several; else do nothing.

    Args:
        cpu: Stay on the CPU (gloo).

    Raises:
        UsageError: The launcher's variables are incomplete.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return
    missing = [n for n in ("RANK", "MASTER_ADDR", "MASTER_PORT") if n not in os.environ]
    if missing:
        raise UsageError(
            f"WORLD_SIZE asks for several processes but {missing[0]} is not set; start them with "
            "accelerate launch or torchrun"
        )
    from accelerate import PartialState

    PartialState(cpu=cpu)


def is_main() -> bool:
    """Whether this process is the one that writes the run's files."""
    return not dist.is_initialized() or dist.get_rank() == 0


def wait() -> None:
    """Wait until every process is here."""
    if dist.is_initialized():
        dist.barrier()


def greatest(value: float) -> float:
    """The greatest of all processes' values, for what they must decide alike."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    values: list[Any] = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return max(map(float, values))


def summed(values: tuple[int, ...]) -> tuple[int, ...]:
    """The sums of all processes' numbers, place by place."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    gathered: list[Any] = [values] * dist.get_world_size()
    dist.all_gather_object(gathered, values)
    return tuple(map(sum, zip(*gathered, strict=True)))


@contextmanager
def main_first() -> Iterator[bool]:
    """The main process goes through the block before the others do; gives whether this is it.

    A fault of the main one reaches all of them: nobody waits for a process that is gone.
    """
    main = is_main()
    if not main:
        _follow()
    try:
        yield main
    except BaseException as error:
        if main:
            _announce(error)
        raise
    if main:
        _announce(None)


def run_through(
    wrapper: nn.Module, module: nn.Module, function: Callable[[], Result]
) -> Result | Any:
    """Call a function as the forward pass of a module's wrapper.

    DistributedDataParallel, FSDP and DeepSpeed prepare their gradients' exchange when they are
    called. A loss that calls parts of the module by itself would go past them, and every process
    would train on its own, without an error.

    Args:
        wrapper: What the module was wrapped in, or the module itself.
        module: The module.
        function: Uses the module; what it returns must hold the tensors to go backward from.

    Returns:
        What the function returned, as the wrapper hands it on.
    """
    sharded = isinstance(module, FSDPModule)  # FSDP2 has no wrapper: the module itself is changed
    if wrapper is module and not sharded:
        return function()
    own = module.__dict__.get("forward")

    def forward(*_: Any, **__: Any) -> tuple[Result, list[Tensor]]:
        restore()
        result = function()
        return result, _tensors(result)

    def restore() -> None:
        if own is None:
            module.__dict__.pop("forward", None)
        else:
            module.__dict__["forward"] = own

    module.__dict__["forward"] = forward
    try:
        return wrapper()[0]
    finally:
        restore()


def _tensors(result: object) -> list[Tensor]:
    """The tensors of a result, where a wrapper that looks into lists only finds them."""
    if isinstance(result, Tensor):
        return [result]
    return [value for value in vars(result).values() if isinstance(value, Tensor)]


def _announce(error: BaseException | None) -> None:
    if dist.is_initialized():
        dist.broadcast_object_list([None if error is None else f"{error}"], src=0)


def _follow() -> None:
    told: list[str | None] = [None]
    dist.broadcast_object_list(told, src=0)
    if told[0] is not None:
        raise UsageError(f"the main process stopped: {told[0]}")
