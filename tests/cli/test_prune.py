"""`vistoken prune`: the verb, and what the method yopo makes of a model."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml

from vistoken.systems.yopo.heads import read_head_mask

MASK = "yopo-heads.safetensors"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe file like pico with four layers."""
    from importlib import resources

    values = yaml.safe_load((resources.files("vistoken") / "recipes" / "pico.yaml").read_text())
    values["name"] = "four"
    values["language_model"]["config"]["num_hidden_layers"] = 4
    path = tmp_path_factory.mktemp("recipe") / "four.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def checkpoint(recipe, tmp_path_factory):
    """A full checkpoint of it."""
    from vistoken.api import load
    from vistoken.models.checkpoint import save_full

    out = tmp_path_factory.mktemp("checkpoint") / "full"
    save_full(*load(recipe, device="cpu", dtype="float32"), out)
    return out


@pytest.fixture
def samples(tmp_path, picture):
    """Three rows with pictures, one of them with two, and one without."""
    for number in range(3):
        picture(40, 50, number).save(tmp_path / f"{number}.png")

    def row(name, *images):
        content = [{"type": "image", "path": path} for path in images]
        content.append({"type": "text", "text": "What is this?"})
        answer = [{"type": "text", "text": "A thing."}]
        return {
            "id": name,
            "messages": [
                {"role": "user", "content": content},
                {"role": "assistant", "content": answer},
            ],
        }

    rows = [row("a", "0.png"), row("b", "1.png"), row("c", "1.png", "2.png"), row("d")]
    path = tmp_path / "calib.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def yopo(vistoken, model, out, *words):
    return vistoken("prune", model, "--method", "yopo", "-o", out, "--device", "cpu", *words)


def options_of(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    (mechanism,) = config["decoder_config"]["mechanisms"]
    assert mechanism["part"] == "yopo"
    return mechanism["options"]


def test_prune_a_checkpoint(vistoken, checkpoint, samples, tmp_path, image):
    out = tmp_path / "out"
    words = ["--data", samples, "--set", "heads=2.5", "--set", "layer_cut=3", "--json"]
    outcome = yopo(vistoken, checkpoint, out, *words)
    assert outcome.code == 0, outcome
    assert outcome.data["samples"] == 3
    summary = outcome.data["summary"]
    assert summary["mean_heads"] == 2.5
    assert summary["heads_kept"][:2] == [4, 4]
    options = options_of(out)
    assert options["layer_cut"] == 3
    assert options["mode"] == "training_free"
    mask = read_head_mask(out / MASK)
    assert list(mask.digits()) == options["head_keep"] == summary["head_keep"]
    assert mask.details["samples"] == "3"
    # every weight is the old one, and the new model answers
    assert (out / "model.safetensors").read_bytes() == (
        checkpoint / "model.safetensors"
    ).read_bytes()
    answer = vistoken("chat", "-m", out, "--max-new-tokens", "3", "--image", image, "Hi")
    assert answer.code == 0, answer


def test_the_same_mask_again_from_its_file(vistoken, checkpoint, samples, tmp_path):
    first, second, third = tmp_path / "1", tmp_path / "2", tmp_path / "3"
    assert yopo(vistoken, checkpoint, first, "--data", samples, "--set", "heads=2").code == 0
    mask = f"mask={first / MASK}"
    drop = ["--set", "mode=drop", "--set", "window=3", "--set", "mlp_ratio=2"]
    assert yopo(vistoken, checkpoint, second, "--set", mask, *drop).code == 0
    assert options_of(second)["head_keep"] == options_of(first)["head_keep"]
    assert options_of(second)["window"] == 3
    # a pruned checkpoint is pruned anew: the mechanism is replaced, and switched off meanwhile
    assert yopo(vistoken, second, third, "--data", samples, "--set", "heads=2").code == 0
    assert options_of(third) == options_of(first)


def test_released_masks(vistoken, checkpoint, tmp_path):
    keep = np.array([[1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 0, 1], [1, 0, 0, 0]], dtype=bool)
    np.save(tmp_path / "heads.npy", keep)
    out = tmp_path / "out"
    words = ["--set", f"mask={tmp_path / 'heads.npy'}", "--set", "mode=exact"]
    assert yopo(vistoken, checkpoint, out, *words).code == 0
    assert options_of(out)["head_keep"] == ["1111", "1111", "0101", "1000"]


def test_a_light_checkpoint_stays_light(vistoken, recipe, samples, tmp_path):
    from vistoken.api import load
    from vistoken.models.build import references_of
    from vistoken.models.checkpoint import is_light, save_light
    from vistoken.models.recipe import load_recipe

    light, out = tmp_path / "light", tmp_path / "out"
    model, processor = load(recipe, device="cpu", dtype="float32")
    save_light(model, processor, light, references_of(load_recipe(recipe)), torch.float32)
    assert yopo(vistoken, light, out, "--data", samples, "--set", "heads=3").code == 0
    assert is_light(out)
    again, _ = load(out, device="cpu", dtype="float32")
    assert [m.name for m in again.model.stack] == ["yopo"]
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_a_recipe_becomes_a_full_checkpoint(vistoken, recipe, samples, tmp_path):
    out = tmp_path / "out"
    outcome = yopo(vistoken, recipe, out, "--data", samples, "--samples", "2")
    assert outcome.code == 0, outcome
    assert "samples: 2 of 2" in outcome.err
    assert f"wrote {out}" in outcome.out
    assert read_head_mask(out / MASK).details["samples"] == "2"
    # the default target: 6 of 7 heads, 6 of 7 layers
    options = options_of(out)
    assert options["layer_cut"] == 3
    assert sum(row.count("1") for row in options["head_keep"][2:]) == 7


def test_dry_run_writes_nothing(vistoken, checkpoint, samples, tmp_path):
    out = tmp_path / "out"
    outcome = yopo(vistoken, checkpoint, out, "--data", samples, "--dry-run")
    assert outcome.code == 0, outcome
    assert f"would write {out}" in outcome.out
    assert not out.exists()


def test_words_that_do_not_fit(vistoken, checkpoint, samples, tmp_path):
    def refused(code, *words, model=checkpoint, expect=()):
        out = tmp_path / "out"
        yopo(vistoken, model, out, *words).failed(code, *expect)
        assert not out.exists()

    refused(2, expect=["--data"])
    refused(2, "--data", samples, "--set", "head=3", expect=["did you mean 'heads'"])
    refused(2, "--data", samples, "--set", "heads=5", expect=["from 0 to 4"])
    refused(2, "--data", samples, "--set", "layer_cut=9", expect=["4 layers"])
    refused(2, "--data", samples, "--set", "window=3", expect=["training_free"])
    refused(2, "--data", samples, "--set", "heads=2", "--set", "threshold=1", expect=["one of"])
    np.save(tmp_path / "heads.npy", np.ones((4, 4)))
    mask = f"mask={tmp_path / 'heads.npy'}"
    refused(2, "--data", samples, "--set", mask, expect=["leave --data out"])
    np.save(tmp_path / "heads.npy", np.ones((4, 5)))
    refused(4, "--set", mask, expect=["4 layers of 5 heads"])
    refused(4, "--set", "mask=x.npy", expect=["x.npy does not exist"])
    refused(2, "--data", samples, model="pico", expect=["model of 2 layers"])
    refused(3, "--data", tmp_path / "absent.jsonl", expect=["absent.jsonl"])
    text = tmp_path / "text.jsonl"
    text.write_text(samples.read_text().splitlines()[3] + "\n")
    refused(3, "--data", text, expect=["no row with a picture"])
    outcome = vistoken("prune", checkpoint, "--method", "yop", "-o", tmp_path / "out")
    outcome.failed(2, "did you mean 'yopo'")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    yopo(vistoken, checkpoint, tmp_path / "full", "--data", samples).failed(2, "not empty")
