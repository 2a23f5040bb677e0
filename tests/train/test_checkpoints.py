"""Killed at any moment, on a full disk, on a read-only one: what is left can be used."""

import errno
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

from vistoken.core.errors import MachineError
from vistoken.core.files import writing
from vistoken.train import run as run_module
from vistoken.train.checkpoints import (
    best_checkpoint,
    checkpoints,
    discard,
    last_checkpoint,
    prune,
    publish,
    sweep,
)
from vistoken.train.config import parse_config
from vistoken.train.trainer import VistokenTrainer

FORK = multiprocessing.get_context("fork")
STEPS = 14
STAGE = {
    "name": "joint",
    "groups": {
        "connector": {"train": "full", "lr": 1e-3},
        "language": {"train": "lora", "lr": 5e-3, "lora": {"r": 2, "alpha": 4, "dropout": 0.1}},
    },
    "steps": STEPS,
    "save_every": 1,
    "log_every": 1,
}


def configuration(data, output):
    return parse_config(
        {
            "recipe": "pico",
            "data": [str(data / "train.jsonl")],
            "output": str(output),
            "cache": str(output.parent / "cache"),
            "precision": "float32",
            "stages": [STAGE],
        }
    )


def work(config, resume):
    torch.set_num_threads(1)
    run_module.train(config, resume=resume)


def start(config, resume):
    process = FORK.Process(target=work, args=(config, resume))
    process.start()
    return process


def newest_step(folder):
    return max((int(path.name[11:]) for path in folder.glob("checkpoint-*")), default=0)


@pytest.mark.slow
def test_killed_at_any_moment_a_run_goes_on_bit_for_bit(data, tmp_path) -> None:
    expected = configuration(data, tmp_path / "a")
    run_module.train(expected)
    config = configuration(data, tmp_path / "b")
    folder = config.output / "stages" / "joint"
    chance = random.Random(5)
    kills = 0
    for _ in range(4):
        before = newest_step(folder)
        process = start(config, (config.output / "config.yaml").is_file())
        while process.is_alive() and newest_step(folder) < before + chance.randint(1, 3):
            process.join(0.002)
        process.join(chance.uniform(0.0, 0.06))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join()
        for checkpoint in checkpoints(folder):  # complete, every one
            load_file(checkpoint / "trained.safetensors")
            torch.load(checkpoint / "optimizer.pt", weights_only=True)
            step = json.loads((checkpoint / "trainer_state.json").read_text())["global_step"]
            assert checkpoint.name == f"checkpoint-{step}"
        assert newest_step(folder) >= before
        assert last_checkpoint(folder).name == f"checkpoint-{newest_step(folder)}"
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert kills > 1
    run_module.train(config, resume=True)
    wanted = load_file(expected.output / "stages" / "joint" / "trained.safetensors")
    resumed = load_file(folder / "trained.safetensors")
    assert wanted.keys() == resumed.keys()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in wanted.items())
    sweep(folder)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


class _Killed(BaseException):
    pass


SAVING = ("_save_optimizer_and_scheduler", "_save_rng_state", "_save_scaler", "save_model")


@pytest.mark.parametrize("moment", [*SAVING, "publish", "prune", "replaced"])
def test_dying_while_saving_leaves_the_one_before(data, tmp_path, monkeypatch, moment) -> None:
    """Death at a chosen place of the third checkpoint; nothing gets to clean up after it."""
    config = configuration(data, tmp_path / "c")
    folder = config.output / "stages" / "joint"
    calls = [0]

    def die(original):
        def dying(*args, **options):
            calls[0] += 1
            if calls[0] == 3:
                raise _Killed
            return original(*args, **options)

        return dying

    with monkeypatch.context() as patch:
        patch.setattr("vistoken.train.checkpoints.shutil.rmtree", lambda *_, **__: None)
        if moment in SAVING:
            patch.setattr(VistokenTrainer, moment, die(getattr(Trainer, moment)))
        elif moment == "replaced":
            patch.setattr("vistoken.train.checkpoints._flush", die_after_replace(folder))
        else:
            name = f"vistoken.train.checkpoints.{moment}"
            patch.setattr(name, die({"publish": publish, "prune": prune}[moment]))
        with pytest.raises(_Killed):
            run_module.train(config)
    latest = last_checkpoint(folder)
    assert latest.name == ("checkpoint-3" if moment in ("prune", "replaced") else "checkpoint-2")
    load_file(latest / "trained.safetensors")
    torch.load(latest / "optimizer.pt", weights_only=True)
    report = run_module.train(config, resume=True)
    assert report.stages[0].steps == STEPS
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def die_after_replace(folder):
    def flush(path):
        if path == folder and (folder / "checkpoint-3").is_dir():
            raise _Killed

    return flush


def make(folder, step, loss=None):
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "trainer_state.json").write_text("{}")
    (path / "score.json").write_text(json.dumps({"loss": loss}))
    return path


def test_the_latest_and_the_best_are_kept(tmp_path) -> None:
    for step, loss in ((1, 3.0), (2, 1.0), (3, None), (10, 2.0), (11, 2.5)):
        make(tmp_path, step, loss)
    assert best_checkpoint(tmp_path, "loss").path.name == "checkpoint-2"
    assert best_checkpoint(tmp_path, "exact/name") is None
    prune(tmp_path, 2, keep_best="loss")
    assert [p.name for p in checkpoints(tmp_path)] == [
        "checkpoint-2",
        "checkpoint-10",
        "checkpoint-11",
    ]
    prune(tmp_path, 1, keep_best=None)
    assert [p.name for p in checkpoints(tmp_path)] == ["checkpoint-11"]
    prune(tmp_path, None, keep_best=None)
    assert last_checkpoint(tmp_path).name == "checkpoint-11"


def test_what_is_no_number_is_never_the_best(tmp_path) -> None:
    for step, loss in ((1, float("nan")), (2, 2.0), (3, 1.0), (4, float("-inf"))):
        make(tmp_path, step, loss)
    assert best_checkpoint(tmp_path, "loss").path.name == "checkpoint-3"


def test_what_is_incomplete_is_no_checkpoint(tmp_path) -> None:
    good = make(tmp_path, 4)
    (tmp_path / "checkpoint-5").mkdir()
    half = make(tmp_path, 6)
    (half / "trainer_state.json").write_text('{"global_step": ')
    (tmp_path / "checkpoint-best").mkdir()
    assert last_checkpoint(tmp_path) == good
    assert last_checkpoint(tmp_path / "nowhere") is None
    (tmp_path / ".saving-checkpoint-7").mkdir()
    (tmp_path / ".gone-checkpoint-1").mkdir()
    sweep(tmp_path)
    assert not list(tmp_path.glob(".*"))
    discard(good)
    assert last_checkpoint(tmp_path) is None


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path) -> None:
    make(tmp_path, 3, 1.0)
    new = make(tmp_path / ".saving", 3, 2.0)
    publish(new, tmp_path / "checkpoint-3")
    assert json.loads((tmp_path / "checkpoint-3" / "score.json").read_text()) == {"loss": 2.0}
    assert not new.exists()


@pytest.mark.parametrize("moment", range(10))
def test_dying_while_replacing_leaves_the_old_one_or_the_new(tmp_path, monkeypatch, moment):
    """Death before each change of the folder in turn; there is no other checkpoint."""
    make(tmp_path, 3, 1.0)
    new = make(tmp_path / ".saving-checkpoint-3", 3, 2.0)
    calls = itertools.count()

    def dying(original):
        def call(*args, **options):
            if next(calls) == moment:
                raise _Killed
            return original(*args, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("os.replace", "os.fsync", "shutil.rmtree"):
            module, function = name.split(".")
            original = getattr({"os": os, "shutil": shutil}[module], function)
            patch.setattr(f"vistoken.train.checkpoints.{name}", dying(original))
        if moment < 9:
            with pytest.raises(_Killed):
                publish(new, tmp_path / "checkpoint-3")
        else:  # the moments are all of them
            publish(new, tmp_path / "checkpoint-3")
    left = last_checkpoint(tmp_path)
    assert left == tmp_path / "checkpoint-3"
    assert json.loads((left / "score.json").read_text())["loss"] in (1.0, 2.0)
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


def test_a_full_disk_is_one_sentence_and_costs_nothing_saved(data, tmp_path, monkeypatch) -> None:
    config = configuration(data, tmp_path / "d")
    folder = config.output / "stages" / "joint"
    save = torch.save

    def full(*args, **options):
        if (folder / "checkpoint-2").is_dir():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(MachineError, match="disk is full") as caught:
            run_module.train(config)
    assert "\n" not in str(caught.value)
    assert last_checkpoint(folder).name == "checkpoint-2"
    assert not list(folder.glob(".*"))
    assert run_module.train(config, resume=True).stages[0].steps == STEPS


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "x"), "disk is full"),
        (OSError(errno.EROFS, "x", "some/file"), "some/file cannot be written"),
        (RuntimeError("PytorchStreamWriter failed writing file data/3"), "disk is full"),
        (RuntimeError("I/O error: Read-only file system (os error 30)"), "cannot be written"),
    ],
)
def test_what_the_disk_refuses_is_the_machines_fault(tmp_path, error, words) -> None:
    with pytest.raises(MachineError, match=words), writing(tmp_path):
        raise error


def test_other_errors_pass_as_they_are(tmp_path) -> None:
    with pytest.raises(KeyError), writing(tmp_path):
        raise KeyError("else")
    with pytest.raises(FileNotFoundError), writing(tmp_path):
        (tmp_path / "nowhere").read_text()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_directory(tmp_path) -> None:
    from vistoken.models.checkpoint import atomic_directory

    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    with pytest.raises(MachineError, match="cannot be written"):
        atomic_directory(folder / "out", lambda _: None)
    shutil.rmtree(folder)
