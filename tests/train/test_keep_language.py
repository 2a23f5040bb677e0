"""Rows without a picture hold the language model; rows with one teach it."""

import json

import pytest
import torch

from vistoken.core.errors import UsageError
from vistoken.data.prose import prose_rows
from vistoken.models.build import build
from vistoken.models.recipe import load_recipe
from vistoken.train.group_settings import LoraConfigFields
from vistoken.train.log_file import read_records
from vistoken.train.lora import inject_lora
from vistoken.train.objectives.keep_language import adapters_off, without_picture
from vistoken.train.objectives.keep_language import check_model as check
from vistoken.train.run import train

from .stages import JOINT, configuration

LORA = {"train": "lora", "lr": 2e-2, "lora": {"r": 4, "alpha": 8}}
STAGE = JOINT | {
    "needs": None,
    "groups": {"language": LORA},
    "steps": 6,
    "objective": "keep-language",
}


@pytest.fixture
def prose(tmp_path):
    """A file of eight short rows without a picture."""
    rows = prose_rows()[:8]
    for row in rows:
        (content,) = row["messages"][1]["content"]
        content["text"] = content["text"][:80]
    path = tmp_path / "text.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def losses(config):
    train(config)
    return [r["loss"] for r in read_records(config.output / "metrics.jsonl") if "loss" in r]


def drift(folder, untouched, ids):
    """Mean KL from the untouched pico to a trained one, on plain tokens."""
    from vistoken.api import load

    model, _ = load(folder)
    with torch.no_grad():
        now, before = (
            torch.log_softmax(one(input_ids=ids).logits.float(), -1) for one in (model, untouched)
        )
    return float((before.exp() * (before - now)).sum(-1).mean())


def test_without_pictures_nothing_is_learned_from_what_the_rows_say(data, prose, tmp_path):
    config = configuration(data, tmp_path / "run", [STAGE], data=[str(prose)])
    # rounding, which the optimiser's steps of one size enlarge; next-token has more than 5
    assert losses(config) == pytest.approx([0.0] * 6, abs=1e-2)


def test_rows_with_pictures_are_trained_as_by_next_token(data, tmp_path):
    kept = configuration(data, tmp_path / "kept", [STAGE])
    plain = configuration(data, tmp_path / "plain", [STAGE | {"objective": "next-token"}])
    assert losses(kept) == losses(plain)


@pytest.mark.slow
def test_the_language_model_drifts_less_than_by_next_token(data, prose, tmp_path, pico):
    """Mixed micro-batches: pictures and prose in one, as the order brings them."""
    text = " ".join(row["messages"][1]["content"][0]["text"] for row in prose_rows()[8:12])
    ids = torch.tensor([pico[1].tokenizer(text, add_special_tokens=False)["input_ids"][:200]])
    found = {}
    for objective in ("keep-language", "next-token"):
        stage = STAGE | {"objective": objective, "steps": 40, "images_per_step": 4}
        config = configuration(
            data,
            tmp_path / objective,
            [stage],
            data=[str(data / "train.jsonl"), str(prose)],
            image_root=str(data),
        )
        train(config)
        found[objective] = drift(config.output / "model", pico[0], ids)
    assert 0 < found["keep-language"] < found["next-token"] / 2


def test_which_targets_have_a_picture(data, prose):
    from vistoken.train.masks import Segments
    from vistoken.train.packing import PackedBatch

    # one row of a sample with a picture (token 9) and one without, then a row with only the latter
    ids = torch.tensor([[9, 1, 2, 3, 4], [5, 6, 7, 8, 0]])
    sample = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, 1]])
    sources = torch.tensor([1, 2, 3, 6])
    batch = PackedBatch(
        ids,
        torch.zeros_like(ids),
        Segments(sample, torch.full_like(sample, -1)),
        sources,
        torch.zeros(4, dtype=torch.int64),
        torch.zeros(4, dtype=torch.int64),
        ("text",),
        9,
        torch.zeros(2, 5, 1, dtype=torch.int64),
    )
    assert without_picture(batch, 9).tolist() == [False, False, True, True]


def adapted_pico():
    """A pico of one's own with adapters on its language model, which do nothing yet."""
    model, _ = build(load_recipe("pico"))
    model.requires_grad_(False)
    inject_lora(model, {"language": LoraConfigFields(r=4, alpha=8)})
    return model


def test_adapters_come_back_with_their_gradients(pico):
    model = adapted_pico()
    ids = torch.arange(3, 12)[None]
    untouched = pico[0](input_ids=ids).logits
    wanted = {n for n, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_()
        adapted = model(input_ids=ids).logits
        with adapters_off(model):
            assert torch.equal(model(input_ids=ids).logits, untouched)
        assert torch.equal(model(input_ids=ids).logits, adapted)
    assert not torch.allclose(adapted, untouched)
    assert wanted == {n for n, p in model.named_parameters() if p.requires_grad}


def test_a_model_without_adapters_is_refused_when_a_row_needs_them(data, prose, tmp_path):
    stage = STAGE | {"groups": {"language": {"train": "full", "lr": 1e-3}}}
    config = configuration(data, tmp_path / "run", [stage], data=[str(prose)])
    with pytest.raises(UsageError, match="set groups.language.train to lora"):
        train(config)


def test_a_language_model_that_moves_beside_adapters_elsewhere_is_refused(data, prose, tmp_path):
    stage = STAGE | {
        "groups": {
            "language": {"train": "full", "lr": 1e-3},
            "connector": {"train": "lora", "lr": 1e-3, "lora": {"r": 2, "alpha": 2}},
        }
    }
    config = configuration(data, tmp_path / "run", [stage], data=[str(prose)])
    with pytest.raises(UsageError, match="set groups.language.train to lora"):
        train(config)


def test_sharded_weights_are_refused(monkeypatch):
    """Whole parameters stand in for sharded ones, which need several processes."""
    model = adapted_pico()
    check(model)
    monkeypatch.setattr("torch.distributed.tensor.DTensor", torch.nn.Parameter)
    with pytest.raises(UsageError, match=r"use ddp\.yaml"):
        check(model)


def test_language_weights_that_move_beside_their_adapters_are_refused():
    model = adapted_pico()
    model.model.language_model.norm.weight.requires_grad_(True)
    with pytest.raises(UsageError, match=r"norm\.weight is trained beside its adapter"):
        check(model)
