"""Time spent waiting for data: counted per step, apart from everything else."""

from types import SimpleNamespace

import pytest

from vistoken.train import data_time
from vistoken.train.data_time import DataClock, TimedData


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless told to move on."""
    now = SimpleNamespace(time=0.0)
    monkeypatch.setattr(data_time.time, "perf_counter", lambda: now.time)
    return now


def step(timer, clock, wait, work):
    timer.wait_begins()
    clock.time += wait
    timer.wait_ends()
    clock.time += work
    timer.on_step_end(None, None, None)


def test_waiting_is_a_share_of_the_steps(clock):
    timer = DataClock()
    assert timer.read() == {}
    step(timer, clock, 1.0, 3.0)
    clock.time += 100  # a checkpoint
    step(timer, clock, 2.0, 2.0)
    assert timer.read() == {"step_seconds": 4.0, "data_seconds": 1.5, "data_share": 0.375}
    assert timer.read() == {}
    step(timer, clock, 0.0, 1.0)
    assert timer.read() == {"step_seconds": 1.0, "data_seconds": 0.0, "data_share": 0.0}


class _Trainer:
    def __init__(self):
        self.callbacks, self.records = [], []

    def add_callback(self, callback):
        self.callbacks.append(callback)

    def get_batch_samples(self, iterator, number, device):
        return [next(iterator) for _ in range(number)], None

    def log(self, logs, start_time=None):
        self.records.append(logs)


class _Timed(TimedData, _Trainer):
    pass


def test_a_trainer_with_the_mixin_reports_it(clock):
    trainer = _Timed()

    def batches():
        while True:
            clock.time += 0.25
            yield "batch"

    assert trainer.get_batch_samples(batches(), 2, "cpu") == (["batch"] * 2, None)
    clock.time += 0.5
    trainer.callbacks[0].on_step_end(None, None, None)
    trainer.log({"eval_loss": 1.0})
    trainer.log({"loss": 1.0})
    assert trainer.records == [
        {"eval_loss": 1.0},
        {"loss": 1.0, "step_seconds": 1.0, "data_seconds": 0.5, "data_share": 0.5},
    ]
