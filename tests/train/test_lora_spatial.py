"""LoRA on spatial kernels: which can have it, trained, interrupted, continued and merged."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForImageTextToText

from vistoken.core.errors import UsageError
from vistoken.models.build import build
from vistoken.models.checkpoint import merge_adapter, save_full
from vistoken.models.cost import empty_model
from vistoken.models.modeling import VistokenForConditionalGeneration
from vistoken.models.quantize import quantize_language_model
from vistoken.models.recipe import load_recipe
from vistoken.train.groups import apply_groups, part_parameters
from vistoken.train.lora import is_lora, lora_layers
from vistoken.train.memory import predict_memory
from vistoken.train.run import train
from vistoken.train.trainer import VistokenTrainer

from .stages import JOINT, configuration
from .test_lora_parts import adapted, logits, lora, stage


def with_connector(*stages):
    """Pico with another connector."""
    return load_recipe("pico").model_copy(update={"connector": list(stages)})


def llava_sp(**options):
    base = {"variant": "cropping", "width": 16, "detail_kernel": 2, "scales": [2, 4]}
    return {"part": "llava-sp", "options": base | options}


def adapters(model):
    """Adapted layers, by the names inside their connector stage."""
    stem = "model.multi_modal_projector.llava-sp."
    return {n.rpartition(".lora_")[0].removeprefix(stem) for n in lora_layers(model)}


def test_plain_kernels_and_linear_layers_get_adapters_and_the_patch_projector_none():
    model, _ = build(load_recipe("pico"))
    apply_groups(model, stage(spatial=lora()))
    assert adapters(model) == {
        "spatial_extractor.kernels.0",
        "spatial_extractor.kernels.1",
        "detail_integrator.detail",
        "detail_integrator.query.1",
        "detail_integrator.key.1",
        "detail_integrator.value.1",
        "spatial_projector",
    }


def test_merged_kernels_give_the_same_logits_at_any_stride():
    model, processor = adapted(spatial=lora(r=3, alpha=7))
    expected = logits(model, processor)
    plain, _ = build(load_recipe("pico"))
    assert not torch.allclose(logits(plain, processor), expected, atol=1e-3)
    merge_adapter(model)
    torch.testing.assert_close(logits(model, processor), expected, atol=1e-5, rtol=1e-5)
    kernel = model.get_submodule("model.multi_modal_projector.llava-sp.spatial_extractor.kernels.1")
    assert type(kernel) is nn.Conv2d


def test_low_rank_kernels_get_adapters_on_both_halves():
    model, _ = build(with_connector(llava_sp(kernel="low_rank", rank=4)))
    apply_groups(model, stage(spatial=lora(targets=["spatial_extractor"])))
    assert adapters(model) == {
        f"spatial_extractor.kernels.{k}.{half}" for k in "01" for half in "01"
    }


def test_depthwise_kernels_are_refused_by_name_unless_targets_leave_them_out(caplog):
    model, _ = build(with_connector(llava_sp(kernel="separable")))
    depthwise = r"llava-sp\.spatial_extractor\.kernels\.0\.0 \(depthwise kernel\)"
    with pytest.raises(UsageError, match=rf"{depthwise}.*train: full.*spatial_projector"):
        apply_groups(model, stage(spatial=lora()))
    with pytest.raises(UsageError, match=rf"'kernels\.0\.0' is {depthwise}"):
        apply_groups(model, stage(spatial=lora(targets=["kernels.0.0"])))
    apply_groups(model, stage(spatial=lora(targets=["spatial_extractor", "spatial_projector"])))
    assert adapters(model) == {
        "spatial_extractor.kernels.0.1",
        "spatial_extractor.kernels.1.1",
        "spatial_projector",
    }
    assert "spatial_extractor.kernels.0.0 (depthwise kernel)" in caplog.text
    trained = [n for n, p in part_parameters(model)["spatial"].items() if p.requires_grad]
    assert all(map(is_lora, trained))


@pytest.mark.parametrize(
    ("part", "named"),
    [("row-col", r"row-col\.rows \(bare tensor\), row-col\.cols"), ("free-tokens", "embeddings")],
)
def test_bare_tensors_are_refused_by_name(part, named):
    model, _ = build(with_connector("mlp", part))
    with pytest.raises(UsageError, match=f"only .*{named}.*cannot have LoRA; use train: full"):
        apply_groups(model, stage(spatial=lora()))
    model, _ = build(with_connector(llava_sp(), part))
    with pytest.raises(UsageError, match=rf"{named}.*cannot have LoRA.*lora\.targets"):
        apply_groups(model, stage(spatial=lora()))


def test_a_target_that_is_not_there_is_named():
    model, _ = build(load_recipe("pico"))
    with pytest.raises(UsageError, match=r"no linear layer 'kernel'.*spatial_extractor"):
        apply_groups(model, stage(spatial=lora(targets=["kernel"])))


def test_predicted_memory_counts_the_adapters_alone():
    recipe = load_recipe("pico")
    config = recipe.model_config_for()
    asked = stage(spatial=lora(r=3))
    made = predict_memory(empty_model(config), recipe.pipeline(config), asked, length=64)
    real, _ = build(recipe)
    apply_groups(real, asked)
    trained = sum(p.numel() for n, p in real.named_parameters() if is_lora(n))
    assert made.gradients == 4 * trained
    assert made.optimizer == 8 * trained
    assert made.activations > 0


def test_a_quantised_language_model_under_spatial_adapters():
    pytest.importorskip("torchao")
    model, processor = build(load_recipe("pico"))
    language = lora() | {"quantization": "int8"}
    apply_groups(model, stage(spatial=lora(), language=language))
    inputs = processor(text="what?", return_tensors="pt")
    assert model(**inputs).logits.isfinite().all()
    kernel = model.model.multi_modal_projector.stages[0].spatial_extractor.kernels[0]
    assert type(kernel.get_base_layer().weight) is nn.Parameter
    merged, _ = adapted(spatial=lora())
    merge_adapter(merged)
    quantize_language_model(merged, "int8")
    assert logits(merged, processor).isfinite().all()


class _Stop(Exception):
    pass


def test_a_run_is_interrupted_gone_on_with_and_merged(data, tmp_path, monkeypatch):
    groups = {
        "spatial": {"train": "lora", "lr": 5e-3, "lora": {"r": 2, "alpha": 4, "dropout": 0.1}},
        "language": {"train": "lora", "lr": 5e-3, "lora": {"r": 4, "alpha": 8, "dropout": 0.1}},
    }
    stages = [JOINT | {"needs": None, "steps": 4, "groups": groups}]
    whole = configuration(data, tmp_path / "a", stages)
    train(whole)
    config = configuration(data, tmp_path / "b", stages)
    step = VistokenTrainer.training_step

    def stop(trainer, *args):
        if trainer.state.global_step == 3:
            raise _Stop
        return step(trainer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(VistokenTrainer, "training_step", stop)
        with pytest.raises(_Stop):
            train(config)
    report = train(config, resume=True)
    first, second = (
        load_file(c.output / "stages" / "joint" / "trained.safetensors") for c in (whole, config)
    )
    moved = [n for n, t in first.items() if "kernels" in n and "lora_B" in n and t.any()]
    assert len(moved) == 2
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    model = VistokenForConditionalGeneration.from_pretrained(report.model)
    _, processor = build(load_recipe("pico"))
    expected = logits(model, processor)
    merge_adapter(model)
    save_full(model, processor, tmp_path / "mine")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "mine")
    torch.testing.assert_close(logits(again, processor), expected, atol=1e-5, rtol=1e-5)
    # its stages go on with the adapter that the checkpoint carries
    further = configuration(data, tmp_path / "c", stages, recipe=str(report.model))
    assert train(further).stages[0].steps == 4


def test_a_carried_adapter_on_other_layers_is_named():
    model, _ = build(load_recipe("pico"))
    apply_groups(model, stage(language=lora(targets=["q_proj", "v_proj"])))
    with pytest.raises(UsageError, match=r"carries no LoRA on .*set targets to \[q_proj, v_proj\]"):
        apply_groups(model, stage(language=lora()))
    with pytest.raises(UsageError, match=r"carries LoRA on .*v_proj.*\[q_proj, v_proj\]"):
        apply_groups(model, stage(language=lora(targets=["q_proj"])))
    apply_groups(model, stage(language=lora(targets=["v_proj", "q_proj"])))
