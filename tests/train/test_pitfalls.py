"""The known pitfalls of LLaVA training, each with what a naive implementation does wrong.

Pitfalls that are tested with the part they concern, rather than here:

    mismatch of re-tokenised pieces          data/test_labels, data/test_official_masks,
                                             train/test_labelling
    projector not found after LoRA           convert/test_export_llava_sp, models/test_checkpoint
    pinpoints from arguments, not config     convert/test_official_config
    names in more than one group             train/test_groups
    two marks for one picture                data/test_repeated_marks
    answers cut off at the length limit      train/test_sample_packing, train/test_left_out
    means over nothing                       train/test_step_reports
    odd pictures, sides of one pixel         models/test_images, systems/test_llava_views
    disk full, killed while saving           train/test_checkpoints, train/test_resuming
    changed settings on resume, no number    train/test_resuming, train/test_measures
    downloads that end early                 convert/test_packages
    trackers with somebody's key             train/test_arguments
    stage 2 without stage 1's weights        train/test_run
"""

import copy
import errno
import json
import os
import re

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from vistoken.core.errors import DataError, MachineError, UsageError, WeightsError
from vistoken.core.objectives import Clock
from vistoken.data.labels import IGNORE_LABEL
from vistoken.models.checkpoint import save_light
from vistoken.models.modeling import VistokenForConditionalGeneration
from vistoken.models.recipe import load_recipe, recipe_names
from vistoken.models.templates import load_template
from vistoken.train.encoders import PixelEncoder
from vistoken.train.examples import read_examples
from vistoken.train.fit import check_tokenizer
from vistoken.train.groups import apply_groups
from vistoken.train.labelling import ExactLabels
from vistoken.train.lora import lora_layers
from vistoken.train.metrics import Meter
from vistoken.train.microbatch import TrainBatch
from vistoken.train.objectives.next_token import NextToken
from vistoken.train.packing import IGNORE, Row, batch_packed, pack
from vistoken.train.run import train
from vistoken.train.samples import QuestionCollator, group_examples
from vistoken.train.settings import StageConfig

from .conftest import row, write_lines
from .stages import ALIGN, JOINT, configuration

ALONE = JOINT | {"needs": None, "steps": 1}


def question(text, answer="cup"):
    return [
        {"role": "user", "content": [{"type": "text", "text": text}]},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]


@pytest.mark.parametrize("template", ["vicuna-v1", "llama-2", "chatml"])
@pytest.mark.parametrize("words", ["What does ASSISTANT: say?", "Is [/INST] a word?", "</s>"])
def test_headers_inside_a_question_cost_no_supervision(pico, template, words):
    """Splitting the prompt at its header finds three parts, and the sample is ignored."""
    tokenizer = pico[1].tokenizer
    label = ExactLabels(pico[1], load_template(template))
    made = label([*question(words), *question("And now?", "7 dogs")], [], "sample 'x'")
    learned = [token for token in made.labels if token != IGNORE_LABEL]
    decoded = tokenizer.decode(learned, skip_special_tokens=True)
    assert "cup" in decoded
    assert "7 dogs" in decoded
    assert "say" not in decoded
    assert "word" not in decoded


def test_a_sample_without_supervision_stops_the_run_by_name(data, tmp_path):
    """A loss of exactly 0 for as long as nobody looks."""
    write_lines(tmp_path / "a.jsonl", [row("mute", "images/0.png", "What is it?", "")])
    config = configuration(data, tmp_path / "a", [ALONE])
    config = config.model_copy(update={"data": (tmp_path / "a.jsonl",), "image_root": data})
    with pytest.raises(DataError, match="'mute'") as caught:
        train(config)
    assert caught.value.exit_code == 3


def test_a_token_that_is_also_the_padding_is_attended(pico):
    """`input_ids != pad_token_id` as a mask hides real tokens where padding is the unknown one."""
    pad = 7
    rows = [[3, pad, pad, 20, 2], [3, 9, 9, 20, 2, 2, 2, 2]]
    packed = [pack([Row(ids, [IGNORE] * 3 + ids[3:], 0)]) for ids in rows]
    losses = []
    for batch in (batch_packed(packed, pad), batch_packed(packed[:1], 0)):
        with torch.no_grad():
            made = TrainBatch(pico[0], {"batch": batch, "pictures": None}, Meter(), Clock(0, 1, 0))
            losses.append(made.states().hidden[:2])
        assert batch.segments.dense()[0, 0, 4, :5].all()
    torch.testing.assert_close(losses[0], losses[1], atol=1e-5, rtol=1e-5)


def test_a_tokenizer_without_padding_needs_none(pico, data):
    """Llama-3's has neither padding nor an unknown token to stand in for it."""
    processor = copy.copy(pico[1])
    processor.tokenizer = copy.deepcopy(pico[1].tokenizer)
    path = data / "uneven-pitfall.jsonl"
    write_lines(path, [row(n, "images/0.png", "What?" * k, "cup") for n, k in (("a", 1), ("b", 9))])
    batches = []
    for token in (processor.tokenizer.pad_token, None):
        processor.tokenizer.pad_token = token
        collate = QuestionCollator(
            processor, processor.chat_template, PixelEncoder(processor), 2048
        )
        batches.append(collate(group_examples(read_examples([path], None), 1))["batch"])
    with_padding, without = batches
    assert torch.equal(with_padding.targets, without.targets)
    assert torch.equal(with_padding.segments.dense(), without.segments.dense())
    assert without.input_ids.min() >= 0


@pytest.mark.parametrize("recipe", recipe_names())
def test_no_recipe_names_a_place_on_somebodys_machine(recipe):
    """Released scripts load stage 1 from a private absolute path."""
    text = yaml.safe_dump(load_recipe(recipe).model_dump(mode="json"))
    assert not re.search(r"(^|[\s'\"])(/|~|[A-Z]:\\)\w", text)
    assert not re.search(r"(?i)api.?key|token: [0-9a-f]{20}|wandb", text)


def test_a_batch_without_targets_is_no_division_by_zero(pico):
    """A prompt over the limit leaves no label; the mean over none of them is 0/0."""
    model = copy.deepcopy(pico[0]).requires_grad_(True)
    inputs = {"batch": None, "pictures": None}
    loss = NextToken().loss(TrainBatch(model, inputs, Meter(), Clock(0, 1, 0.0)))
    loss.mean.backward()
    assert (loss.mean.item(), loss.targets) == (0.0, 0)
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)


def test_a_text_only_step_has_a_gradient_for_all_that_pictures_train(pico):
    """Processes that exchange gradients wait for those of the connector, picture or not."""
    model = copy.deepcopy(pico[0])
    groups = {"connector": {"train": "full"}, "spatial": {"train": "full"}}
    stage = {"name": "a", "steps": 1, "groups": groups | {"language": {"train": "full"}}}
    apply_groups(model, StageConfig.model_validate(stage))
    batch = batch_packed([pack([Row([3, 9, 20, 2], [IGNORE, IGNORE, 20, 2], 0)])], 0)
    inputs = {"batch": batch, "pictures": None}
    NextToken().loss(TrainBatch(model, inputs, Meter(), Clock(0, 1, 0.0))).mean.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, grad in grads.items() if grad is None] == []
    assert all(grad.any() == ("multi_modal" not in name) for name, grad in grads.items())


def test_adapters_are_in_every_layer_and_in_the_language_model_only(pico):
    """Released code keeps names that hold a 1 out of the scan, and finds the tower's q_proj."""
    model = copy.deepcopy(pico[0])
    groups = {"language": {"train": "lora", "lora": {"r": 2}}}
    apply_groups(model, StageConfig.model_validate({"name": "a", "steps": 1, "groups": groups}))
    names = lora_layers(model)
    per_layer = [sum(f".layers.{n}." in name for name in names) for n in range(2)]
    assert per_layer[0] == per_layer[1] == len(names) // 2 > 0
    assert not any("vision_tower" in name or "projector" in name for name in names)


IMAGE_RECORD = {
    "id": "bad",
    "image": "images/0.png",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat?"},
        {"from": "gpt", "value": "A cup."},
    ],
}


def turns(*pairs):
    return {"conversations": [{"from": who, "value": value} for who, value in pairs]}


@pytest.mark.parametrize(
    "fault",
    [
        turns(("human", "<image>\nWhat?"), ("gpt", "a"), ("human", "<image>\n?"), ("gpt", "b")),
        {"conversations": []},
        turns(("robot", "What?"), ("gpt", "a")),
        turns(("human", 5), ("gpt", "a")),
        turns(("human", "<image>\nWhat?"), ("human", "?"), ("gpt", "a")),
        {"image": None, **turns(("human", " "), ("gpt", "a"))},
        {"image": "images/gone.png"},
        {"image": ["images/0.png", "images/1.png"]},
    ],
    ids=[
        "two marks",
        "empty",
        "role",
        "no text",
        "order",
        "zero length",
        "missing file",
        "two files",
    ],
)
def test_faulty_records_are_named_before_training(data, tmp_path, fault):
    """Deep inside a collator these are an IndexError, a KeyError, or nothing at all."""
    path = tmp_path / "a.json"
    path.write_text(json.dumps([IMAGE_RECORD | fault]))
    with pytest.raises(DataError, match="bad") as caught:
        read_examples([path], data)
    assert "\n" not in str(caught.value)


def test_an_unknown_template_is_never_replaced(data, tmp_path):
    """Released code falls back to vicuna_v1."""
    with pytest.raises(UsageError, match="vicuna-v1"):
        train(configuration(data, tmp_path / "a", [ALONE | {"template": "vicuna-v9"}]))


def test_weights_of_another_stage_or_model_are_refused_by_name(data, tmp_path):
    """`strict=False` takes what fits, and trains the rest from random weights."""
    first = configuration(data, tmp_path / "a", [ALIGN | {"steps": 1}])
    train(first)
    stage = first.output / "stages" / "align"
    state = load_file(stage / "trained.safetensors")
    name = next(n for n in sorted(state) if n.endswith("linear_1.weight"))
    state[name] = state[name][:, :-1].contiguous()
    (tmp_path / "other").mkdir()
    save_file(state, tmp_path / "other" / "trained.safetensors")
    config = configuration(data, tmp_path / "b", [JOINT], init=str(tmp_path / "other"))
    with pytest.raises(WeightsError, match=f"{name} is .*the model needs") as caught:
        train(config)
    assert caught.value.exit_code == 4


def test_an_adapter_for_another_base_is_refused(pico, tmp_path):
    """All its names fit; other weights under the same names: models/test_checkpoint."""
    from vistoken.models.build import references_of

    model = copy.deepcopy(pico[0])
    groups = {"language": {"train": "lora", "lora": {"r": 2}}}
    apply_groups(model, StageConfig.model_validate({"name": "a", "steps": 1, "groups": groups}))
    out = tmp_path / "any-name-at-all"  # released loaders decide by words in the folder's name
    save_light(model, pico[1], out, references_of(load_recipe("pico")))
    VistokenForConditionalGeneration.from_pretrained(out)
    path = out / "adapter" / "adapter_model.safetensors"
    state = load_file(path)
    name = next(n for n in sorted(state) if "layers.1.self_attn.q_proj.lora_A" in n)
    state[name] = torch.cat([state[name], state[name]], 1)
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"adapter .* the first is .*q_proj.*the base it was"):
        VistokenForConditionalGeneration.from_pretrained(out)


def test_a_tokenizer_of_another_model_is_refused(pico):
    """Its ids are in range often enough to train nonsense."""
    model, processor = copy.deepcopy(pico)
    check_tokenizer(model, processor, "here")
    processor.tokenizer.add_tokens(["<more>", "<words>"])
    with pytest.raises(WeightsError, match=r"here: the tokenizer goes up to token \d+") as caught:
        check_tokenizer(model, processor, "here")
    assert caught.value.exit_code == 4
    model.config.image_token_id = 5
    with pytest.raises(WeightsError, match="puts pictures at token 5"):
        check_tokenizer(model, pico[1], "here")


def test_a_read_only_output_is_the_machines_fault(data, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path / "a"))

    monkeypatch.setattr("vistoken.core.files.os.replace", refuse)
    with pytest.raises(MachineError, match="cannot be written") as caught:
        train(configuration(data, tmp_path / "a", [ALONE]))
    assert caught.value.exit_code == 5
    assert "\n" not in str(caught.value)
