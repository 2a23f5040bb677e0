"""Two processes on the CPU learn what one does with the same global batch."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from vistoken.train.config import dump_config, parse_config
from vistoken.train.run import train

from .conftest import row, write_lines

STEPS = 6
SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from vistoken.train.config import load_config
from vistoken.train.run import train
for path in sys.argv[1:]:
    train(load_config(Path(path)))
"""


def configuration(data, output, average, accumulate):
    stage = {
        "name": "joint",
        "groups": {
            "connector": {"train": "full", "lr": 1e-3},
            "spatial": {"train": "full", "lr": 1e-3},
            "language": {"train": "lora", "lr": 5e-3, "lora": {"r": 4, "alpha": 8}},
        },
        "steps": STEPS,
        "accumulate": accumulate,
        "questions_per_image": 1,  # samples of unequal numbers of supervised tokens
        "loss_average": average,
        "log_every": 1,
        "save_every": 2,
    }
    return parse_config(
        {
            "recipe": "pico",
            "data": [str(data / "train.jsonl")],
            "output": str(output),
            "cache": str(output.parent / "cache"),
            "precision": "float32",
            "stages": [stage],
        }
    )


def losses(output):
    lines = [json.loads(line) for line in (output / "metrics.jsonl").open()]
    return [line["loss"] for line in lines if "loss" in line]


def launch(files, folder, before=""):
    """Train configurations one after the other, on two processes."""
    script = folder / "both.py"
    script.write_text(before + SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(script), *map(str, files)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_train_as_one_does(data, tmp_path) -> None:
    alone, together, files = {}, {}, []
    for average in ("tokens", "micro-batch"):
        alone[average] = configuration(data, tmp_path / f"one-{average}", average, 2)
        train(alone[average])
        together[average] = configuration(data, tmp_path / f"two-{average}", average, 1)
        files.append(tmp_path / f"{average}.yaml")
        files[-1].write_text(dump_config(together[average]))
    launch(files, tmp_path)
    for average, config in together.items():
        one, two = losses(alone[average].output), losses(config.output)
        assert len(two) == STEPS  # one process writes
        assert two == pytest.approx(one, rel=1e-4)
        wanted = load_file(alone[average].output / "stages" / "joint" / "trained.safetensors")
        got = load_file(config.output / "stages" / "joint" / "trained.safetensors")
        assert wanted.keys() == got.keys()
        for name, tensor in wanted.items():
            torch.testing.assert_close(got[name], tensor, atol=2e-4, rtol=1e-3)
        assert (config.output / "model" / "references.json").is_file()
        folder = config.output / "stages" / "joint"
        assert sorted(path.name for path in folder.glob("checkpoint-*")) == [
            "checkpoint-4",
            "checkpoint-6",
        ]
        states = sorted(path.name for path in (folder / "checkpoint-6").glob("rng_state*"))
        assert states == ["rng_state_0.pth", "rng_state_1.pth"]


FAST_CLOCK = """
import os
from vistoken.train.trainer import VistokenTrainer
real = VistokenTrainer.elapsed.fget
skew = 1.0 + 4.0 * int(os.environ["RANK"])
VistokenTrainer.elapsed = property(lambda self: skew * real(self))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_clocks_that_differ_end_a_stage_in_the_same_step(data, tmp_path) -> None:
    """Otherwise one process leaves and the other waits for its gradients."""
    config = configuration(data, tmp_path / "timed", "micro-batch", 1)
    timed = config.stages[0].model_copy(update={"steps": 100_000, "minutes": 0.1})
    config = config.model_copy(update={"stages": (timed,)})
    (tmp_path / "timed.yaml").write_text(dump_config(config))
    launch([tmp_path / "timed.yaml"], tmp_path, FAST_CLOCK)
    done = json.loads((config.output / "stages" / "joint" / "done.json").read_text())
    assert 0 < done["steps"] < 100_000


def text_only(name, question, answer):
    entry = row(name, "", question, answer)
    entry["messages"][0]["content"] = [{"type": "text", "text": question}]
    return entry


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("order", ["modality-length", "shuffle"])
def test_steps_without_pictures_and_recomputed_activations(data, tmp_path, order) -> None:
    """As in the released second stage: some steps, or one process's part of them, are text only."""
    rows = [row(f"i{n}", f"images/{n}.png", f"What{' now' * n}?", "a cup") for n in range(4)]
    rows += [text_only(f"t{n}", f"Say{' it' * n}.", "hello") for n in range(4)]
    write_lines(tmp_path / "mixed.jsonl", rows)
    alone, together = (
        configuration(data, tmp_path / name, "tokens", accumulate)
        for name, accumulate in (("one", 2), ("two", 1))
    )
    changes = {"order": order, "checkpointing": True}
    alone, together = (
        config.model_copy(
            update={
                "data": (tmp_path / "mixed.jsonl",),
                "image_root": data,
                "stages": (config.stages[0].model_copy(update=changes),),
            }
        )
        for config in (alone, together)
    )
    train(alone)
    (tmp_path / "two.yaml").write_text(dump_config(together))
    launch([tmp_path / "two.yaml"], tmp_path)
    assert losses(together.output) == pytest.approx(losses(alone.output), rel=1e-4)
    wanted, got = (
        load_file(config.output / "stages" / "joint" / "trained.safetensors")
        for config in (alone, together)
    )
    for name, tensor in wanted.items():
        torch.testing.assert_close(got[name], tensor, atol=2e-4, rtol=1e-3)
