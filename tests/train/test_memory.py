"""Predicted memory against what a real step on the CPU holds, and against known 7B counts."""

import json

import pytest
import torch

from vistoken.cli.main import run
from vistoken.core.errors import UsageError
from vistoken.models.build import build
from vistoken.models.cost import empty_model
from vistoken.models.recipe import load_recipe
from vistoken.train.groups import apply_groups, optimizer_groups
from vistoken.train.memory import ASSUMED_WORDS, StageMemory, predict_memory, saved_bytes
from vistoken.train.settings import StageConfig

LENGTHS = {"samples": 3, "length": 90, "supervised": 40}
MODES = {
    "connector": {"connector": {"train": "full"}, "spatial": {"train": "full"}},
    "full": {
        "connector": {"train": "full"},
        "spatial": {"train": "full"},
        "language": {"train": "full"},
    },
    "towers": {
        "vision": {"train": "full"},
        "connector": {"train": "full"},
        "spatial": {"train": "full"},
        "language": {"train": "lora", "lora": {"r": 4, "alpha": 8}},
    },
    "lora": {
        "connector": {"train": "full"},
        "language": {"train": "lora", "lora": {"r": 4, "alpha": 8}},
    },
}


def stage_of(mode, **fields):
    values = {"name": "s", "groups": MODES[mode], "steps": 1, "images_per_step": 3, **fields}
    return StageConfig.model_validate(values)


def wider():
    """Pico with a language model that is a little wider and deeper, so that layers count."""
    recipe = load_recipe("pico")
    config = {**recipe.language_model.config, "hidden_size": 64, "intermediate_size": 160}
    config["num_hidden_layers"] = 4
    return recipe.model_copy(
        update={"language_model": recipe.language_model.model_copy(update={"config": config})}
    )


def batch_of(model, processor, picture):
    """Ids (B, n), 4-D mask, pixels and view table of three pictures with text to one length."""
    images = processor.image_processor([picture(32, 32, seed) for seed in range(3)])
    plan = processor.image_processor.plan
    visual = len(plan.arrange(images["view_table"][:1]).order)
    ids = torch.randint(3, 400, (LENGTHS["samples"], LENGTHS["length"]))
    ids[:, :visual] = model.config.image_token_id
    mask = torch.ones(LENGTHS["length"], LENGTHS["length"], dtype=torch.bool).tril()
    return ids, mask.repeat(LENGTHS["samples"], 1, 1, 1), images


def real_step(recipe, stage, picture):
    """Bytes of weights, gradients, optimiser state and saved tensors of a step on the CPU."""
    model, processor = build(recipe)
    apply_groups(model, stage)
    model.train()
    if stage.checkpointing:
        model.gradient_checkpointing_enable()
    ids, mask, images = batch_of(model, processor, picture)
    optimizer = torch.optim.AdamW(optimizer_groups(model, stage))
    states = []

    def forward():
        outputs = model.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=torch.arange(LENGTHS["length"]).repeat(LENGTHS["samples"], 1),
            pixel_values=images["pixel_values"],
            view_table=images["view_table"],
            use_cache=False,
        )
        states.append(outputs.last_hidden_state)

    saved = saved_bytes(model, forward)
    hidden = states[0][:, -LENGTHS["supervised"] :].flatten(0, 1)
    logits = model.lm_head(hidden).float()
    torch.nn.functional.cross_entropy(logits, ids[:, -LENGTHS["supervised"] :].flatten()).backward()
    optimizer.step()
    moments = [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if torch.is_tensor(value) and value.dim() > 0
    ]
    return {
        "weights": size_of(model.parameters()),
        "gradients": size_of(p.grad for p in model.parameters() if p.grad is not None),
        "optimizer": size_of(moments),
        "activations": saved,
        # layers of a tower behind the one that is read
        "unused": size_of(p for p in model.parameters() if p.requires_grad and p.grad is None),
    }


def size_of(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("mode", MODES)
def test_a_step_on_the_cpu_holds_what_was_predicted(picture, mode) -> None:
    recipe = wider()
    stage = stage_of(mode)
    measured = real_step(recipe, stage, picture)
    config = recipe.model_config_for()
    predicted = predict_memory(
        empty_model(config),
        recipe.pipeline(config),
        stage,
        bf16=False,
        length=LENGTHS["length"],
        supervised=LENGTHS["supervised"],
    )
    assert predicted.weights == measured["weights"]
    unused = measured["unused"]
    assert bool(unused) == (mode == "towers")
    assert predicted.gradients == measured["gradients"] + unused
    assert predicted.optimizer == measured["optimizer"] + 2 * unused
    assert predicted.activations == pytest.approx(measured["activations"], rel=0.15)


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_checkpointing_keeps_the_layers_inputs(picture, mode) -> None:
    recipe = wider()
    config = recipe.model_config_for()
    stage = stage_of(mode, checkpointing=True)
    options = {"bf16": False, "length": LENGTHS["length"], "supervised": LENGTHS["supervised"]}
    spec = recipe.pipeline(config)
    predicted = predict_memory(empty_model(config), spec, stage, **options)
    plain = predict_memory(empty_model(config), spec, stage_of(mode), **options)
    assert predicted.activations < plain.activations / 2
    measured = real_step(recipe, stage, picture)["activations"]
    assert predicted.activations == pytest.approx(measured, rel=0.15)
    layers = plain.activations - predicted.activations
    assert predicted.recomputed == pytest.approx(layers / 4, rel=0.35)
    assert plain.recomputed == 0


def test_what_is_not_there_at_one_time_is_not_added_up() -> None:
    sizes = {"weights": 100, "gradients": 10, "optimizer": 20, "activations": 30, "loss": 7}
    sizes |= {"sequence": 1, "visual_tokens": 1, "samples": 1}

    def total(recomputed, encoding, before=0, **other):
        rest = {"recomputed": recomputed, "encoding": encoding, "gradients_before": before}
        return StageMemory("s", words=None, **{**sizes, **rest, **other}).total

    assert total(0, 0) == 100 + 20 + 30 + 7  # gradients come as activations go
    assert total(0, 0, before=4) == 100 + 20 + 30 + 7 + 4
    assert total(9, 0, before=10) == 100 + 20 + 30 + 9 + 10
    assert total(9, 0, gradients=500) == 100 + 500 + 20 + 9  # the backward pass ends fuller
    assert total(9, 200) == 100 + 20 + 200  # towers run when there are no gradients yet


@pytest.mark.parametrize(("given", "all_before"), [({}, False), ({"devices": 2}, True)])
def test_gradients_are_there_from_the_start_where_something_keeps_them(given, all_before) -> None:
    recipe = wider()
    config = recipe.model_config_for()
    full = {part: {"train": "full"} for part in ("connector", "spatial", "language")}
    spec = recipe.pipeline(config)
    found = predict_memory(empty_model(config), spec, stage_of("lora", groups=full), **given)
    head = config.text_config.vocab_size * config.text_config.hidden_size * 4
    assert 0 < head < found.gradients
    assert found.gradients_before == (found.gradients if all_before else head)
    slow = stage_of("lora", groups=full, accumulate=2)
    found = predict_memory(empty_model(config), spec, slow, **given)
    assert found.gradients_before == found.gradients


def test_alignment_counts_its_pictures_and_no_language_model(picture) -> None:
    recipe = wider()
    config = recipe.model_config_for()
    groups = {"connector": {"train": "full"}}
    stage = stage_of("connector", groups=groups, objective="name-alignment")
    model, processor = build(recipe)
    apply_groups(model, stage)
    images = processor.image_processor([picture(32, 32, seed) for seed in range(3)])
    saved = saved_bytes(model, lambda: model.get_image_features(**images).pooler_output)
    spec = recipe.pipeline(config)
    predicted = predict_memory(empty_model(config), spec, stage, bf16=False)
    assert predicted.activations == pytest.approx(saved, rel=0.15)
    assert predicted.sequence == predicted.visual_tokens  # and not max_length
    assert predicted.weights == size_of(model.parameters())
    trained = size_of(p for p in model.parameters() if p.requires_grad)
    assert (predicted.gradients, predicted.optimizer) == (trained, 2 * trained)
    few = predict_memory(empty_model(config), spec, stage, bf16=False, words=12)
    assert (few.words, predicted.words) == (12, ASSUMED_WORDS)
    per_word = 3 * 4 * 3 * predicted.visual_tokens
    assert predicted.loss - few.loss == per_word * (ASSUMED_WORDS - 12)


# LoRA of rank 64 on Qwen-7B, one sample at a time, checkpointing, one A100: the table of its README
PUBLISHED_7B = {256: 20.1e9, 512: 20.4e9, 1024: 21.5e9}


@pytest.mark.slow
@pytest.mark.parametrize("length", PUBLISHED_7B)
def test_published_memory_of_a_7b_model(length) -> None:
    recipe = load_recipe("pico")
    shape = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
    shape |= {"num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 151_936}
    language = recipe.language_model.model_copy(
        update={"config": {**recipe.language_model.config, **shape}}
    )
    recipe = recipe.model_copy(update={"language_model": language})
    config = recipe.model_config_for()
    groups = {"language": {"train": "lora", "lora": {"r": 64, "alpha": 16}}}
    stage = stage_of("lora", groups=groups, images_per_step=1, checkpointing=True)
    predicted = predict_memory(empty_model(config), recipe.pipeline(config), stage, length=length)
    assert predicted.total == pytest.approx(PUBLISHED_7B[length], rel=0.15)


def test_sharding_divides_what_it_divides() -> None:
    recipe = load_recipe("pico")
    config = recipe.model_config_for()

    def predict(**options):
        return predict_memory(
            empty_model(config), recipe.pipeline(config), stage_of("lora"), length=64, **options
        )

    one = predict()
    for sharding, divided in (
        ("none", ()),
        ("zero2", ("gradients", "optimizer")),
        ("zero3", ("gradients", "optimizer", "weights")),
        ("fsdp2", ("gradients", "optimizer", "weights")),
    ):
        four = predict(devices=4, sharding=sharding)
        for field in ("gradients", "optimizer", "weights", "activations"):
            share = 4 if field in divided else 1
            assert getattr(four, field) == -(-getattr(one, field) // share)


def test_quantisation_and_types_of_weights() -> None:
    recipe = load_recipe("pico")
    config = recipe.model_config_for()
    text = sum(
        module.weight.numel()
        for module in empty_model(config).model.language_model.modules()
        if isinstance(module, torch.nn.Linear)
    )

    def weights(quantization, bf16=True):
        groups = {"language": {**MODES["lora"]["language"], "quantization": quantization}}
        stage = stage_of("lora", groups=groups)
        return predict_memory(
            empty_model(config), recipe.pipeline(config), stage, bf16=bf16, length=64
        ).weights

    assert weights(None) - weights("int8") == text
    assert weights("int8") - weights("nf4") == pytest.approx(0.484 * text, rel=0.01)
    assert weights(None, bf16=False) > weights(None)


def test_faults_are_named() -> None:
    recipe = load_recipe("pico")
    config = recipe.model_config_for()
    with pytest.raises(UsageError, match="the picture alone has"):
        predict_memory(empty_model(config), recipe.pipeline(config), stage_of("lora"), length=8)


@pytest.mark.slow
def test_the_papers_model_in_the_released_recipe_fits_its_hardware(capsys) -> None:
    """Trained on cards of 80 GB; LoRA of rank 128 on Vicuna-7B is 319.8 M parameters."""
    arguments = ["inspect", "memory", "--config", "llava-sp-pooling-7b", "--json"]
    arguments += ["stages.pretrain.checkpointing=true"]  # as released
    assert run(arguments) == 0
    stages = {stage["stage"]: stage for stage in json.loads(capsys.readouterr().out)["stages"]}
    tune = stages["finetune"]
    spatial = 763_363_328 + 2_097_152
    assert tune["gradients"] == 4 * (319_815_680 + spatial + 20_979_712)
    assert tune["optimizer"] == 2 * tune["gradients"]
    assert all(stage["total"] < 80e9 for stage in stages.values())
    assert run([*arguments, "--devices", "8", "--sharding", "zero2"]) == 0
    shared = json.loads(capsys.readouterr().out)["stages"][1]
    assert shared["optimizer"] == -(-tune["optimizer"] // 8)


def test_the_verb_prints_a_table(capsys) -> None:
    assert run(["inspect", "memory", "--config", "nano", "--sharding", "no"]) == 2
    assert "sharding" in capsys.readouterr().err


def test_checkpointing_asks_no_gradients_of_frozen_towers(picture) -> None:
    """Checkpointing makes embeddings ask for gradients, which would reach into the towers."""
    model, processor = build(load_recipe("pico"))
    apply_groups(model, stage_of("lora", checkpointing=True))
    model.train()
    model.gradient_checkpointing_enable()
    images = processor.image_processor([picture(32, 32, 0)])
    features, _ = model.model.encode(images["pixel_values"], images["view_table"])
    assert not any(feature_map.requires_grad for maps in features for feature_map in maps)
    pixels = [view.clone().requires_grad_() for view in images["pixel_values"]]
    features, _ = model.model.encode(pixels, images["view_table"])
    assert all(feature_map.requires_grad for maps in features for feature_map in maps)
