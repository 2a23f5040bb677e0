import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from vistoken.core.errors import DataError, UsageError, WeightsError
from vistoken.core.objectives import StepLoss
from vistoken.models.modeling import VistokenForConditionalGeneration
from vistoken.train.objectives.name_alignment import NameAlignment
from vistoken.train.run import last_checkpoint, train
from vistoken.train.samples import group_examples, read_examples
from vistoken.train.trainer import VistokenTrainer, schedule

from .conftest import row, write_lines
from .stages import ALIGN, JOINT, configuration


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A run of both stages, never interrupted."""
    config = configuration(data, tmp_path_factory.mktemp("run") / "a")
    return config, train(config)


def test_a_run_leaves_everything_it_should(finished):
    config, report = finished
    assert [stage.steps for stage in report.stages] == [4, 6]
    record = json.loads((config.output / "run.json").read_text())
    assert record["seed"] == 0
    assert {"torch", "vistoken"} <= set(record["versions"])
    lines = [json.loads(line) for line in (config.output / "metrics.jsonl").open()]
    assert any("retrieval/names" in line for line in lines)
    last = [line for line in lines if line["stage"] == "joint" and "loss" in line][-1]
    assert last["questions"] == 6 * 4
    assert 0 < last["supervised_share"] < 1
    assert {"exact/name", "exact/presence", "questions_per_s", "eta_s"} <= set(last)


def test_the_trained_model_loads_and_is_the_trained_one(finished):
    config, report = finished
    model = VistokenForConditionalGeneration.from_pretrained(report.model)
    trained = load_file(config.output / "stages" / "joint" / "trained.safetensors")
    assert any("lora_" in name for name in trained)
    own = dict(model.named_parameters())
    for name, tensor in trained.items():
        if name in own:
            torch.testing.assert_close(own[name], tensor, atol=4e-3, rtol=8e-3)  # kept in bf16


def test_frozen_weights_stay(finished, pico):
    config, _ = finished
    joint = load_file(config.output / "stages" / "joint" / "trained.safetensors")
    align = load_file(config.output / "stages" / "align" / "trained.safetensors")
    for name, tensor in align.items():
        changed = not torch.equal(tensor, joint[name])
        assert changed == ("spatial_" in name or "detail_" in name), name
    assert not any(name.startswith("model.vision_tower") for name in joint)


class _Interrupted(Exception):
    pass


def test_an_interrupted_run_goes_on_bit_for_bit(finished, data, tmp_path, monkeypatch):
    """Killed in step 4 of 6, just after the checkpoint of step 4's predecessor."""
    config = configuration(data, tmp_path / "b")
    step = VistokenTrainer.training_step

    def stop(trainer, *args):
        if trainer.stage.name == "joint" and trainer.state.global_step == 5:
            raise _Interrupted
        return step(trainer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(VistokenTrainer, "training_step", stop)
        with pytest.raises(_Interrupted):
            train(config)
    folder = config.output / "stages" / "joint"
    assert last_checkpoint(folder).name == "checkpoint-4"
    report = train(config, resume=True)
    assert [stage.name for stage in report.stages] == ["joint"]

    expected = load_file(finished[0].output / "stages" / "joint" / "trained.safetensors")
    resumed = load_file(folder / "trained.safetensors")
    assert set(expected) == set(resumed)
    for name, tensor in expected.items():
        assert torch.equal(tensor, resumed[name]), name


def test_checkpoints_hold_no_frozen_weights_and_a_broken_one_is_passed_over(finished):
    folder = finished[0].output / "stages" / "joint"
    names = load_file(folder / "checkpoint-6" / "trained.safetensors")
    assert not any("vision_tower" in n or "embed_tokens" in n for n in names)
    assert sorted(p.name for p in folder.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    state = folder / "checkpoint-6" / "trainer_state.json"
    moved = state.rename(state.with_suffix(".away"))
    assert last_checkpoint(folder).name == "checkpoint-4"
    moved.rename(state)


def test_a_finished_run_resumed_only_loads(finished):
    config, _ = finished
    report = train(config, resume=True)
    assert report.stages == ()
    assert report.model.is_dir()


def test_a_stage_needs_the_one_before(data, tmp_path):
    config = configuration(data, tmp_path / "c", stages=[JOINT])
    with pytest.raises(WeightsError, match="'joint' needs the weights of stage 'align'"):
        train(config)


def test_a_stage_can_start_from_another_run(finished, data, tmp_path):
    start = finished[0].output / "stages" / "align"
    config = configuration(data, tmp_path / "d", stages=[JOINT | {"steps": 1}], init=str(start))
    train(config)
    key = "model.multi_modal_projector.llava-sp.patch_projector.linear_1.weight"
    trained = load_file(config.output / "stages" / "joint" / "trained.safetensors")
    assert torch.equal(trained[key], load_file(start / "trained.safetensors")[key])


@pytest.mark.parametrize("fault", ["missing", "unexpected"])
def test_weights_that_do_not_fit_are_refused(finished, data, tmp_path, fault):
    state = load_file(finished[0].output / "stages" / "align" / "trained.safetensors")
    if fault == "missing":
        state.pop(next(iter(sorted(state))))
    else:
        state["model.multi_modal_projector.other.weight"] = torch.zeros(1)
    (tmp_path / "start").mkdir()
    save_file(state, tmp_path / "start" / "trained.safetensors")
    config = configuration(data, tmp_path / "e", stages=[JOINT], init=str(tmp_path / "start"))
    with pytest.raises(WeightsError, match=f"is {fault}"):
        train(config)


def test_dry_run_writes_nothing(data, tmp_path):
    config = configuration(data, tmp_path / "f")
    report = train(config, dry_run=True)
    assert [stage.samples for stage in report.stages] == [4, 4]
    assert report.model is None
    assert not config.output.exists()


def test_an_output_in_use_and_a_changed_configuration_are_refused(finished, data):
    config, _ = finished
    with pytest.raises(UsageError, match="--resume"):
        train(config)
    changed = configuration(data, config.output, seed=1)
    with pytest.raises(UsageError, match="seed was 0, is 1"):
        train(changed, resume=True)
    longer = configuration(data, config.output, stages=[ALIGN, JOINT | {"steps": 9}])
    with pytest.raises(UsageError, match=r"stages\.joint\.steps was 6, is 9"):
        train(longer, resume=True)


def test_questions_about_a_picture_are_grouped_and_evenly_cut(data):
    examples = read_examples([data / "train.jsonl"], None)
    assert [len(group.examples) for group in group_examples(examples, 10)] == [4] * 4
    assert [len(group.examples) for group in group_examples(examples, 3)] == [2] * 8


def test_faulty_rows_are_named(data, tmp_path):
    path = tmp_path / "rows.jsonl"
    write_lines(path, [row("one", "images/gone.png", "What?", "cup")])
    with pytest.raises(DataError, match=r"'one'.*gone\.png does not exist"):
        read_examples([path], None)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="line 1"):
        read_examples([path], None)
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(DataError, match="no rows"):
        read_examples([path], None)


def test_llava_lists_are_read_too(data, tmp_path):
    record = {
        "id": "7",
        "image": "images/0.png",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is it?"},
            {"from": "gpt", "value": "cup"},
        ],
    }
    path = tmp_path / "llava.json"
    path.write_text(json.dumps([record]), encoding="utf-8")
    (example,) = read_examples([path], data)
    assert example.images == (data / "images" / "0.png",)


def test_schedule_warms_up_and_ends_at_zero():
    assert schedule(0.0, "cosine", 0.1) == 0
    assert schedule(0.05, "cosine", 0.1) == pytest.approx(0.5)
    assert schedule(0.1, "cosine", 0.1) == 1
    assert schedule(1.0, "cosine", 0.1) == pytest.approx(0)
    assert schedule(2.0, "linear", 0.1) == 0
    assert schedule(0.9, "constant", 0.1) == 1


def test_the_clock_ends_a_stage(data, tmp_path):
    stage = ALIGN | {"steps": 10_000, "minutes": 0.02}
    report = train(configuration(data, tmp_path / "g", stages=[stage]))
    assert 0 < report.stages[0].steps < 10_000


def test_a_loss_that_is_no_number_stops_the_run(data, tmp_path, monkeypatch):
    nothing = StepLoss(torch.tensor(float("nan"), requires_grad=True), 1)
    monkeypatch.setattr(NameAlignment, "loss", lambda *_: nothing)
    with pytest.raises(DataError, match="the loss is nan at step 0"):
        train(configuration(data, tmp_path / "h", stages=[ALIGN]))
