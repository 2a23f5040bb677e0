"""Batches made by worker processes: the run is the same, only sooner."""

import json
import multiprocessing
import os
import pickle
import re
import signal

import pytest
import torch
from safetensors.torch import load_file

from vistoken.core.errors import DataError, Interrupted, MachineError
from vistoken.data.schema import SampleFault
from vistoken.train import workers
from vistoken.train.checkpoints import last_checkpoint
from vistoken.train.config import parse_config
from vistoken.train.run import train
from vistoken.train.trainer import VistokenTrainer
from vistoken.train.workers import Sealed, check_workers

from .conftest import faulty_rows, write_lines

STAGE = {
    "name": "joint",
    "groups": {
        "connector": {"train": "full", "lr": 1e-3},
        "language": {"train": "lora", "lr": 5e-3, "lora": {"r": 4, "alpha": 8, "dropout": 0.1}},
    },
    "epochs": 2,
    "save_every": 2,
    "log_every": 1,
    "max_length": 150,
    "too_long": "drop-turns",
}
# metrics of the clock and of the machine
TIMES = re.compile(r"time|_per_s$|seconds$|_s$|data_share|memory|runtime|per_second")


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """Seven rows: one picture is broken, two conversations are too long."""
    root = tmp_path_factory.mktemp("faulty")
    write_lines(root / "rows.jsonl", faulty_rows(root))
    return root / "rows.jsonl"


def configuration(data, output, count, cached=False, policy="skip"):
    return parse_config(
        {
            "recipe": "pico",
            "data": [str(data)],
            "output": str(output),
            "precision": "float32",
            "on_bad_sample": policy,
            "cache": str(output.parent / "cache") if cached else None,
            "workers": count,
            "stages": [STAGE],
        }
    )


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def metrics(config):
    """What the steps logged; a session that was stopped has a last line of its own."""
    records = [one for one in lines(config.output / "metrics.jsonl") if "grad_norm" in one]
    return [{k: v for k, v in one.items() if not TIMES.search(k)} for one in records]


def weights(config):
    return load_file(config.output / "stages" / "joint" / "trained.safetensors")


def assert_same(config, other):
    assert metrics(config) == metrics(other)
    assert sum("loss" in record for record in metrics(config)) >= 10
    found, expected = (
        lines(config.output / "left_out.jsonl"),
        lines(other.output / "left_out.jsonl"),
    )
    assert found == expected
    assert {line["reason"] for line in found} == {
        "bad_samples", "too_long_turns", "too_long_samples"
    }  # fmt: skip
    tensors = weights(other)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in weights(config).items())


@pytest.fixture(scope="module")
def alone(faulty, tmp_path_factory):
    """A run whose own process makes its batches."""
    config = configuration(faulty, tmp_path_factory.mktemp("alone") / "run", 0)
    train(config)
    return config


def test_workers_change_neither_losses_nor_counts_nor_weights(faulty, tmp_path, alone):
    config = configuration(faulty, tmp_path / "run", 2)
    train(config)
    assert_same(config, alone)
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_workers_read_the_feature_cache(faulty, tmp_path):
    configs = [configuration(faulty, tmp_path / str(n) / "run", n, cached=True) for n in (0, 2)]
    for config in configs:
        train(config)
    assert_same(configs[1], configs[0])


@pytest.mark.usefixtures("usual_handlers")
def test_a_signal_to_all_processes_is_answered_after_the_step(faulty, tmp_path, monkeypatch, alone):
    """As a scheduler sends it. The checkpoint is that of the step, not of what was made ahead."""
    config = configuration(faulty, tmp_path / "run", 2)
    step = VistokenTrainer.training_step

    def signalled(trainer, *args):
        loss = step(trainer, *args)
        if trainer.state.global_step == 4:
            children = multiprocessing.active_children()
            assert len(children) == 2
            for process in (*children, multiprocessing.current_process()):
                os.kill(process.pid, signal.SIGTERM)
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(VistokenTrainer, "training_step", signalled)
        with pytest.raises(Interrupted, match="after step 5"):
            train(config)
    assert last_checkpoint(config.output / "stages" / "joint").name == "checkpoint-5"
    # how many workers there are may change: nothing depends on it
    config = configuration(faulty, tmp_path / "run", 1)
    train(config, resume=True)
    assert_same(config, alone)


def test_a_fault_that_a_worker_finds_stops_the_run_in_the_same_words(faulty, tmp_path):
    found = []
    for count in (0, 2):
        with pytest.raises(DataError) as caught:
            train(configuration(faulty, tmp_path / str(count) / "run", count, policy="error"))
        found.append((type(caught.value), str(caught.value)))
    assert found[0] == found[1]


def test_a_fault_keeps_its_kind_on_its_way():
    fault = pickle.loads(pickle.dumps(Sealed(b"", SampleFault("json", "line 1: damaged"))))
    with pytest.raises(SampleFault, match=r"^line 1: damaged$") as caught:
        fault.open()
    assert caught.value.kind == "json"


def test_a_system_that_does_not_fork_is_named(monkeypatch):
    monkeypatch.setattr(workers.multiprocessing, "get_all_start_methods", lambda: ["spawn", "fork"])
    check_workers(0)
    with pytest.raises(MachineError, match="workers: 4 need a system that forks"):
        check_workers(4)
