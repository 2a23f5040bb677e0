"""Gradient accumulation, the order of samples, and what a run reports about both."""

import json

import pytest
import torch
from safetensors.torch import load_file

from vistoken.core.errors import UsageError
from vistoken.data.sampling import group_by_modality_and_length, modality_length
from vistoken.train.config import parse_config
from vistoken.train.run import train
from vistoken.train.samples import group_examples, read_examples
from vistoken.train.trainer import VistokenTrainer

from .conftest import row, write_lines

LONG = "a red cup that stands on a table beside another cup"


@pytest.fixture(scope="module")
def uneven(data):
    """Eight rows whose answers differ much in length."""
    rows = []
    for number in range(8):
        answer = "no" if number % 3 else LONG
        rows.append(row(str(number), f"images/{number % 4}.png", f"Question {number}?", answer))
    write_lines(data / "uneven.jsonl", rows)
    return data / "uneven.jsonl"


def configuration(data, output, stage, **fields):
    return parse_config(
        {
            "recipe": "pico",
            "data": [str(data)],
            "output": str(output),
            "cache": str(output.parent / "cache"),
            "precision": "float32",
            "stages": [
                {
                    "name": "joint",
                    "groups": {"spatial": {"train": "full", "lr": 1e-2}},
                    "steps": 1,
                    "questions_per_image": 1,
                    "schedule": "constant",
                    "warmup": 0,
                    "eps": 1.0,  # steps follow the gradient's size, not its sign alone
                    "log_every": 1,
                    **stage,
                }
            ],
            **fields,
        }
    )


def trained(uneven, output, **stage):
    config = configuration(uneven, output, stage)
    train(config)
    return load_file(config.output / "stages" / "joint" / "trained.safetensors")


def distance(a, b):
    return max((a[name] - b[name]).abs().max().item() for name in a)


def test_with_tokens_the_cut_into_micro_batches_does_not_matter(uneven, tmp_path):
    whole = trained(uneven, tmp_path / "a", images_per_step=8)
    tokens = trained(uneven, tmp_path / "b", images_per_step=1, accumulate=8, loss_average="tokens")
    means = trained(uneven, tmp_path / "c", images_per_step=1, accumulate=8)
    assert distance(whole, tokens) < 1e-7
    assert distance(whole, means) > 1e-5  # the released average is another one
    (line,) = [json.loads(x) for x in (tmp_path / "b" / "metrics.jsonl").open() if '"loss"' in x]
    (full,) = [json.loads(x) for x in (tmp_path / "a" / "metrics.jsonl").open() if '"loss"' in x]
    assert line["loss"] == pytest.approx(full["loss"], abs=1e-4)
    assert {"peak_memory_mb", "supervised_share", "visual_tokens_per_s", "eta_s"} <= set(line)


def test_modality_length_order_is_the_released_one(uneven, tmp_path, monkeypatch):
    seen = []
    step = VistokenTrainer.training_step

    def watch(trainer, model, inputs, *args):
        seen.append(len(inputs["batch"].targets))
        return step(trainer, model, inputs, *args)

    monkeypatch.setattr(VistokenTrainer, "training_step", watch)
    trained(uneven, tmp_path / "d", steps=4, images_per_step=2, order="modality-length")
    groups = group_examples(read_examples([uneven], None), 1)
    lengths = [modality_length(group.examples[0].messages) for group in groups]
    order = group_by_modality_and_length(lengths, 2, 1, torch.Generator().manual_seed(0))
    answers = [2 if len(g.examples[0].messages[1]["content"][0]["text"]) < 5 else 0 for g in groups]
    expected = [all(answers[i] for i in order[n : n + 2]) for n in range(0, 8, 2)]
    short = min(seen)
    assert [count == short for count in seen] == expected


def test_skipped_and_shortened_samples_are_in_metrics_and_record(uneven, tmp_path):
    rows = [json.loads(line) for line in uneven.open()]
    rows[0]["messages"] = []
    rows[1]["messages"][1]["content"][0]["text"] = "cup " * 200
    path = uneven.with_name("faulty.jsonl")
    write_lines(path, rows)
    stage = {"images_per_step": 7, "max_length": 150, "too_long": "drop-sample"}
    config = configuration(path, tmp_path / "e", stage, on_bad_sample="skip")
    report = train(config)
    expected = {"bad_samples": 1, "too_long_turns": 0, "too_long_samples": 1}
    assert report.stages[0].left_out == expected
    record = json.loads((config.output / "run.json").read_text())
    assert record["stages"][0]["left_out"] == expected
    (line,) = [json.loads(x) for x in (config.output / "metrics.jsonl").open() if '"loss"' in x]
    assert (line["bad_samples"], line["too_long_samples"]) == (1, 1)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"objective": "next-tokne"}, "did you mean 'next-token'"),
        ({"objective": "name-alignment", "loss_average": "tokens"}, "do not apply"),
        (
            {"groups": {"language": {"train": "full", "quantization": "int8"}}},
            "quantization needs train: lora",
        ),
        ({"too_long": "cut"}, "too_long"),
    ],
)
def test_faulty_settings_are_named(uneven, tmp_path, stage, message):
    with pytest.raises(UsageError, match=message):
        configuration(uneven, tmp_path / "f", stage)
