"""The decoder benchmark, at the size of pico: it trains, prunes, asks, counts and goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from decoder_nano import MODEL, SHARED, TRAINED, arm_recipe, main, parse, write_start
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from vistoken.models.recipe import load_recipe

COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 160, 30)}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three annotated pictures with two questions each, as training and as held-out data."""
    root = tmp_path_factory.mktemp("scenes")
    (root / "images").mkdir()
    rows, annotations = [], []
    for colour, value in COLOURS.items():
        picture = Image.new("RGB", (64, 64), value)
        ImageDraw.Draw(picture).rectangle((8, 8, 39, 39), fill="white")
        path = f"images/{colour}.png"
        picture.save(root / path)
        things = [{"name": "cup", "box": (8, 8, 40, 40)}]
        annotations.append({"image": path, "background": colour, "objects": things})
        for kind, question, answer in (
            ("name1", "What is it?", "cup"),
            ("colour", "Which colour is the background?", colour),
        ):
            content = [{"type": "image", "path": path}, {"type": "text", "text": question}]
            said = [{"type": "text", "text": answer}]
            messages = [
                {"role": "user", "content": content},
                {"role": "assistant", "content": said},
            ]
            rows.append({"id": f"{colour}-{kind}", "kind": kind, "messages": messages})
    for split in ("train", "val"):
        _write(root / f"{split}.jsonl", rows)
        _write(root / f"{split}.scenes.jsonl", annotations)
    (root / "make.json").write_text("{}")
    return root


def _write(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The two recipes with pico's tower and a language model of four layers like pico's."""
    folder = tmp_path_factory.mktemp("recipes")
    small = load_recipe("pico").model_dump(exclude_none=True)
    small["language_model"]["config"]["num_hidden_layers"] = 4
    paths = []
    for name in ("llava-nano", "saisa-nano"):
        values = load_recipe(name).model_dump(exclude_none=True)
        for field in ("towers", "language_model"):
            values[field] = small[field]
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
        paths.append(str(folder / f"{name}.yaml"))
    return paths


@pytest.fixture(scope="module")
def words(scenes: Path, recipes: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    work = tmp_path_factory.mktemp("work")
    return [
        *("--data", str(scenes), "--work", str(work), "--cache", str(work / "cache")),
        *("--out", str(work / "result.json"), "--recipes", *recipes, "--align-on", "train"),
        *("--steps", "3", "--align-steps", "2", "--grid", "2", "2", "--keep", "0.75", "0.5"),
        *("--samples", "2", "--scenes", "2", "--rounds", "2", "--threads", "1"),
    ]


@pytest.fixture(scope="module")
def result(words: list[str]) -> dict[str, Any]:
    return main(words)


def test_every_model_is_asked_and_counted(result: dict[str, Any], words: list[str]) -> None:
    models = result["models"]
    assert list(models) == ["llava", "saisa", "llava-yopo-0.75", "llava-yopo-0.5"]
    for row in models.values():
        assert set(row["accuracy"]["val"]) == {"name1", "colour", "all"}
        assert {"model", "grey", "prior"} <= set(row["accuracy"]["val"]["all"])
        assert row["accuracy"]["val"]["all"]["n"] == 4
        assert row["cost"]["visual_tokens"] == 4
    assert json.loads(Path(parse(words).out).read_text()) == json.loads(json.dumps(result))


def test_costs_are_those_of_the_mechanisms(result: dict[str, Any]) -> None:
    ratios = {name: row["cost"]["ratio"] for name, row in result["models"].items()}
    assert ratios["llava"] == {"prefill_flops": 1, "decode_flops": 1, "cache_bytes": 1}
    assert ratios["saisa"]["prefill_flops"] < 1
    assert (ratios["saisa"]["decode_flops"], ratios["saisa"]["cache_bytes"]) == (1, 1)
    for cheaper, dearer in (("0.75", ""), ("0.5", "0.75")):
        less = ratios[f"llava-yopo-{cheaper}"]
        more = ratios[f"llava-yopo-{dearer}"] if dearer else ratios["llava"]
        assert all(less[what] < more[what] for what in less)
    # four layers, 4 + 64 tokens; half of the layers keep the 4
    assert ratios["llava-yopo-0.5"]["cache_bytes"] == round((2 * 68 + 2 * 64) / (4 * 68), 4)


def test_arms_take_the_same_steps_from_the_same_alignment(
    result: dict[str, Any], words: list[str]
) -> None:
    work = Path(parse(words).work)
    taken = [result["models"][arm]["training"] for arm in ("llava", "saisa")]
    assert [done["steps"] for done in taken] == [3, 3]
    assert len({done["questions"] for done in taken}) == 1
    aligned = load_file(work / "align/run/stages/align" / TRAINED)
    dense, saisa = (load_file(work / arm / "start" / TRAINED) for arm in ("llava", "saisa"))
    assert dense.keys() == aligned.keys()
    assert all(torch.equal(dense[name], aligned[name]) for name in dense)
    copied = [name for name in saisa if name.startswith(SHARED)]
    assert len(copied) == 4
    for name in copied:
        source = name.replace(SHARED, "model.multi_modal_projector.mlp.")
        assert torch.equal(saisa[name], aligned[source])
    trained = load_file(work / "saisa/run" / MODEL / "model.safetensors")
    first, last = (f"model.mechanisms.saisa.projectors.{n}.linear_1.weight" for n in (0, 3))
    assert not torch.equal(trained[first], trained[last])


def test_a_second_call_trains_and_asks_nothing(
    result: dict[str, Any], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("worked again")

    monkeypatch.setattr("decoder_nano.train", forbidden)
    monkeypatch.setattr("decoder_nano_prune.run_pruner", forbidden)
    monkeypatch.setattr("vistoken.eval.answering.Answerer.__call__", forbidden)
    again = main([*words, "--arms", "llava", "saisa"])
    for name, row in result["models"].items():
        assert again["models"][name]["accuracy"] == row["accuracy"]


def test_the_pruned_graph_can_be_trained_too(words: list[str]) -> None:
    recipe = arm_recipe("yopo", parse(words))
    (mechanism,) = recipe.mechanisms
    assert mechanism == {
        "part": "yopo",
        "options": {"mode": "drop", "window": 3, "layer_cut": 15, "mlp_ratio": 2},
    }


def test_nanos_own_recipes_share_towers_and_alignment() -> None:
    options = parse(["--data", "d", "--work", "w"])
    dense, saisa = (arm_recipe(arm, options) for arm in ("llava", "saisa"))
    assert dense.towers == saisa.towers == load_recipe("nano").towers
    assert dense.language_model == saisa.language_model
    assert [part if isinstance(part, str) else part["part"] for part in saisa.connector] == [
        "concat-grid",
        "mlp",
    ]


def test_an_alignment_that_does_not_fit_is_refused(
    result: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    options = parse(words)
    aligned = options.work / "align/run/stages/align"
    values = arm_recipe("saisa", options).model_dump(exclude_none=True)
    values["connector"][1] = {"part": "mlp", "options": {"hidden_width": 8}}
    wide = load_recipe("pico").model_validate(values)
    with pytest.raises(SystemExit, match="does not fit the alignment"):
        write_start(wide, aligned, tmp_path)
