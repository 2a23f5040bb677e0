"""Packed rows, grouped order, a mean over tokens: a run goes on with all of them as they were."""

import pytest
import torch
from safetensors.torch import load_file

from vistoken.train.checkpoints import last_checkpoint
from vistoken.train.log_file import read_records
from vistoken.train.run import train
from vistoken.train.trainer import VistokenTrainer

from .conftest import row, write_lines
from .stages import JOINT, configuration

STAGE = JOINT | {
    "needs": None,
    "pack_samples": True,
    "order": "modality-length",
    "loss_average": "tokens",
    "questions_per_image": 2,
    "images_per_step": 2,
    "accumulate": 2,
    "max_length": 200,
    "too_long": "drop-turns",
    "steps": 8,
}


class _Stop(Exception):
    pass


@pytest.fixture(scope="module")
def mixed(data):
    """Questions about pictures and without one, of very different lengths: two epochs."""
    rows = []
    for number in range(9):
        question, answer = "What" + " now" * number + "?", "a cup " * (1 + 3 * number % 7)
        rows.append(row(f"i{number}", f"images/{number % 4}.png", question, answer))
        alone = row(f"t{number}", "", question, answer)
        alone["messages"][0]["content"] = [{"type": "text", "text": question}]
        rows.append(alone)
    long = row("long", "images/0.png", "What?", "a cup")
    long["messages"] += row("", "", "Once more?", "cup " * 300)["messages"]
    long["messages"][2]["content"] = [{"type": "text", "text": "Once more?"}]
    write_lines(data / "mixed.jsonl", [*rows, long])
    return data / "mixed.jsonl"


def run(mixed, output, **options):
    config = configuration(mixed.parent, output, [STAGE])
    config = config.model_copy(update={"data": (mixed,)})
    train(config, **options)
    return config.output


def losses(output):
    records = read_records(output / "metrics.jsonl")
    return {r["step"]: r["loss"] for r in records if "loss" in r}


@pytest.fixture(scope="module")
def whole(mixed, tmp_path_factory):
    return run(mixed, tmp_path_factory.mktemp("whole") / "a")


@pytest.mark.parametrize("step", [2, 5])
def test_the_result_is_that_of_a_run_without_a_stop(mixed, whole, tmp_path, monkeypatch, step):
    """Stopped in the second micro-batch of a step, in the first epoch and in the second."""
    training_step = VistokenTrainer.training_step
    calls = []

    def stop(trainer, *args):
        calls.append(trainer.state.global_step)
        if calls.count(step) == 2:
            raise _Stop
        return training_step(trainer, *args)

    output = tmp_path / "a"
    with monkeypatch.context() as patch:
        patch.setattr(VistokenTrainer, "training_step", stop)
        with pytest.raises(_Stop):
            run(mixed, output)
    stage = output / "stages" / "joint"
    assert last_checkpoint(stage).name == f"checkpoint-{step // 2 * 2}"
    run(mixed, output, resume=True)
    assert losses(output) == losses(whole)
    wanted = load_file(whole / "stages" / "joint" / "trained.safetensors")
    resumed = load_file(stage / "trained.safetensors")
    assert wanted.keys() == resumed.keys()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in wanted.items())
    left_out = [(folder / "left_out.jsonl").read_text() for folder in (output, whole)]
    assert left_out[0] == left_out[1]
    assert left_out[0].count("'long'") == 2  # once an epoch
