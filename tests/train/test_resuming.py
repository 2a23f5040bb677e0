"""Stopping, going on, and going on with other settings."""

import json
import multiprocessing
import os
import re
import signal

import pytest
import torch
from safetensors.torch import load_file

from vistoken.core.errors import DataError, Interrupted, UsageError
from vistoken.train import checkpoints as saving
from vistoken.train import stage_run
from vistoken.train.checkpoints import checkpoints, last_checkpoint
from vistoken.train.log_file import append_record, read_records
from vistoken.train.run import train
from vistoken.train.run_folder import claim, read_changes
from vistoken.train.trainer import VistokenTrainer

from .stages import JOINT, configuration

STAGE = JOINT | {"needs": None, "keep": 10}


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The trained tensors of a run that nothing disturbed."""
    config = configuration(data, tmp_path_factory.mktemp("whole") / "a", [STAGE])
    train(config)
    return load_file(config.output / "stages" / "joint" / "trained.safetensors")


def same(config, whole):
    trained = load_file(config.output / "stages" / "joint" / "trained.safetensors")
    assert trained.keys() == whole.keys()
    return all(torch.equal(trained[name], tensor) for name, tensor in whole.items())


pytestmark = pytest.mark.usefixtures("usual_handlers")


@pytest.fixture
def at_step(monkeypatch):
    """Do something in the middle of a step."""

    def install(number, action):
        step = VistokenTrainer.training_step

        def patched(trainer, *args):
            loss = step(trainer, *args)
            if trainer.state.global_step == number:
                action()
            return loss

        monkeypatch.setattr(VistokenTrainer, "training_step", patched)

    yield install
    monkeypatch.undo()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_a_checkpoint_and_has_its_own_exit_code(
    data, tmp_path, monkeypatch, at_step, whole, number, code
):
    config = configuration(data, tmp_path / "a", [STAGE | {"save_every": 100}])
    before = signal.getsignal(number)
    at_step(2, lambda: os.kill(os.getpid(), number))
    with pytest.raises(
        Interrupted, match=rf"{number.name} .* after step 3; add --resume"
    ) as caught:
        train(config)
    assert caught.value.exit_code == code
    assert signal.getsignal(number) is before
    assert last_checkpoint(config.output / "stages" / "joint").name == "checkpoint-3"
    monkeypatch.undo()
    train(config, resume=True)
    assert same(config, whole)


def test_a_second_signal_is_obeyed_at_once(data, tmp_path, at_step):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    at_step(2, twice)
    with pytest.raises(KeyboardInterrupt):
        train(configuration(data, tmp_path / "a", [STAGE]))


def test_a_signal_in_the_last_step_loses_nothing(data, tmp_path, monkeypatch, at_step, whole):
    config = configuration(data, tmp_path / "a", [STAGE])
    at_step(5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match="after stage 'joint'"):
        train(config)
    monkeypatch.undo()
    assert train(config, resume=True).model.is_dir()
    assert same(config, whole)


@pytest.mark.parametrize("moment", ["_save_rng_state", "publish", "finished"])
def test_a_real_kill_in_the_middle_of_a_save(data, tmp_path, whole, moment):
    """SIGKILL: no handler, no clean-up; from the last checkpoint on nothing is lost."""
    config = configuration(data, tmp_path / "a", [STAGE])

    def work():
        torch.set_num_threads(1)

        def die(*_, **__):
            os.kill(os.getpid(), signal.SIGKILL)

        if moment == "publish":
            publish = saving.publish
            calls = iter([publish, publish, die])
            saving.publish = lambda *a: next(calls)(*a)
        elif moment == "finished":  # all steps are done and saved, the stage is not yet closed
            stage_run.write_trained = die
        else:
            save = VistokenTrainer._save_rng_state
            saves = iter([save, save, die])
            VistokenTrainer._save_rng_state = lambda *a: next(saves)(*a)
        train(config)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    folder = config.output / "stages" / "joint"
    assert last_checkpoint(folder).name == f"checkpoint-{6 if moment == 'finished' else 4}"
    train(config, resume=True)
    assert same(config, whole)
    assert not list(folder.glob(".*"))


def test_a_signal_that_is_ignored_stays_ignored(data, tmp_path, at_step, whole):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as after nohup, or in the background
    config = configuration(data, tmp_path / "a", [STAGE])
    at_step(2, lambda: os.kill(os.getpid(), signal.SIGINT))
    train(config)
    assert same(config, whole)


class _Stop(Exception):
    pass


def stop():
    raise _Stop


@pytest.fixture
def stopped(data, tmp_path, monkeypatch, at_step):
    """A run that ended in its fifth step, with checkpoints after the second and the fourth."""
    output = tmp_path / "a"
    at_step(4, stop)
    with pytest.raises(_Stop):
        train(configuration(data, output, [STAGE]))
    monkeypatch.undo()
    return output


def test_intervals_are_those_of_the_configuration_not_of_the_checkpoint(data, stopped, whole):
    config = configuration(data, stopped, [STAGE | {"save_every": 1, "log_every": 2}])
    train(config, resume=True)
    names = [path.name for path in checkpoints(stopped / "stages" / "joint")]
    assert names == [f"checkpoint-{n}" for n in (2, 4, 5, 6)]
    steps = [r["step"] for r in read_records(stopped / "metrics.jsonl") if "loss" in r]
    assert steps == [1, 2, 3, 4, 6]
    assert same(config, whole)


def test_changes_are_said_and_need_consent(data, stopped, whole):
    groups = STAGE["groups"] | {"spatial": {"train": "full", "lr": 0.5}}
    changed = STAGE | {"groups": groups, "clip": 2.0}
    config = configuration(data, stopped, [changed])
    with pytest.raises(UsageError, match="lr was 0.001, is 0.5") as caught:
        train(config, resume=True)
    assert "stages.joint.clip was 1.0, is 2.0" in str(caught.value)
    assert "--allow-changes" in str(caught.value)
    train(config, resume=True, allow_changes=True)
    assert not same(config, whole)
    rate = [r["learning_rate"] for r in read_records(stopped / "metrics.jsonl") if "loss" in r][-1]
    assert rate > 0.01  # the new rate, not the one in the checkpoint
    record = json.loads((stopped / "run.json").read_text())
    assert "stages.joint.clip was 1.0, is 2.0" in record["changes"][0]["changed"]


@pytest.mark.parametrize(
    ("stage", "run", "said"),
    [
        ({"minutes": 3.0}, {}, "stages.joint.minutes was None, is 3.0"),
        ({"keep_best": "loss", "finish": "best"}, {}, "stages.joint.finish was last, is best"),
        ({"keep_best": "loss", "finish": "best"}, {}, "stages.joint.keep_best was None, is loss"),
        ({}, {"cache": None}, "cache was .*, is None"),
        ({"keep_best": "loss", "save_every": 3}, {"cache": "elsewhere"}, None),
    ],
    ids=["minutes", "finish", "keep_best of finish", "no cache", "free"],
)
def test_what_can_change_the_result_needs_consent(data, tmp_path, stage, run, said):
    before = configuration(data, tmp_path / "a", [STAGE])
    claim(before, resume=False)
    after = configuration(data, tmp_path / "a", [STAGE | stage], **run)
    if said is None:
        claim(after, resume=True)
        assert read_changes(after.output) == []
        return
    with pytest.raises(UsageError, match=said):
        claim(after, resume=True)
    claim(after, resume=True, allow_changes=True)
    (noted,) = read_changes(after.output)
    assert any(re.fullmatch(said, line) for line in noted["changed"])


def test_what_no_checkpoint_bridges_is_refused_even_with_consent(data, stopped):
    language = STAGE["groups"]["language"] | {"lora": {"r": 8}}
    wider = STAGE | {"groups": STAGE["groups"] | {"language": language}}
    for stages, place in (([wider], r"lora\.r"), ([STAGE, STAGE | {"name": "more"}], "stages")):
        config = configuration(data, stopped, stages)
        with pytest.raises(UsageError, match=f"cannot bridge .*{place}: "):
            train(config, resume=True, allow_changes=True)


def test_half_a_line_does_no_harm(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2):
        append_record(path, {"step": step})
    path.write_bytes(path.read_bytes() + b'{"step": 3, "lo')
    assert [r["step"] for r in read_records(path)] == [1, 2]
    append_record(path, {"step": 3})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    path.write_bytes(b'{"st')
    append_record(path, {"step": 1})
    assert read_records(path) == [{"step": 1}]
    path.write_text("{\n{}\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 1: not a metrics record"):
        read_records(path)


def test_a_run_that_never_began_leaves_its_folder_free(data, tmp_path):
    wrong = configuration(data, tmp_path / "run", [STAGE], image_root=str(tmp_path / "elsewhere"))
    with pytest.raises(DataError, match="does not exist"):
        train(wrong)
    assert not (tmp_path / "run").exists()
    train(configuration(data, tmp_path / "run", [STAGE | {"steps": 1}]))
