"""LoRA over quantised weights: trained, interrupted, gone on with, merged."""

import pytest
import torch
from safetensors.torch import load_file

from vistoken.core.errors import MachineError
from vistoken.models import quantize
from vistoken.models.checkpoint import merge_adapter, save_full
from vistoken.models.modeling import VistokenForConditionalGeneration
from vistoken.models.processing import VistokenProcessor
from vistoken.train.run import train
from vistoken.train.trainer import VistokenTrainer

from .stages import JOINT, configuration

PACKAGES = {"int8": "torchao", "nf4": "bitsandbytes"}


def stage(method):
    language = JOINT["groups"]["language"] | {"quantization": method}
    return JOINT | {
        "needs": None,
        "steps": 4,
        "groups": JOINT["groups"] | {"language": language},
    }


class _Stop(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("method", list(PACKAGES))
def test_an_interrupted_run_over_quantised_weights(data, tmp_path, monkeypatch, method):
    pytest.importorskip(PACKAGES[method])
    whole = configuration(data, tmp_path / "a", [stage(method)])
    train(whole)
    config = configuration(data, tmp_path / "b", [stage(method)])
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
    assert any("lora_B" in name and tensor.any() for name, tensor in first.items())
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)

    # the result refers to the weights as they were before they were quantised
    model = VistokenForConditionalGeneration.from_pretrained(report.model).eval()
    ids = torch.tensor([[3, 10, 11, 12]])
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    merge_adapter(model)
    save_full(model, VistokenProcessor.from_pretrained(report.model), tmp_path / "merged")
    merged = VistokenForConditionalGeneration.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", list(PACKAGES))
def test_a_package_that_is_not_there_is_named(data, tmp_path, monkeypatch, method):
    for name in ("torchao.quantization", "bitsandbytes.nn"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    assert set(PACKAGES) == set(quantize.METHODS)
    with pytest.raises(MachineError, match=f"need {PACKAGES[method]}: pip install") as caught:
        train(configuration(data, tmp_path / "a", [stage(method)]))
    assert caught.value.exit_code == 5
