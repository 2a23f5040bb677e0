"""`list`, `doctor`, `data`, `train` and `merge`."""

import json
import shutil

import pytest
import torch

from vistoken.cli import checks
from vistoken.cli.console import counted
from vistoken.core.registry import part_table


@pytest.mark.parametrize(
    ("kind", "key", "known"),
    [
        ("recipes", "name", "llava-sp-cropping-7b"),
        ("parts", "name", "llava-sp"),
        ("templates", "name", "vicuna-v1"),
        ("towers", "model_type", "clip_vision_model"),
        ("models", "name", "nano"),
    ],
)
def test_list(vistoken, kind, key, known):
    rows = vistoken("list", kind, "--json").data
    assert known in [row[key] for row in rows]
    assert known in vistoken("list", kind).out


@pytest.mark.parametrize("kind", ["recipes", "parts", "towers", "models"])
def test_lists_fit_a_terminal_and_keep_names_whole(vistoken, kind):
    out = vistoken("list", kind).out
    assert max(map(len, out.splitlines())) <= 80
    words = out.split()
    key = "model_type" if kind == "towers" else "name"
    assert all(row[key] in words for row in vistoken("list", kind, "--json").data)


def test_one_thing_is_not_several():
    assert [counted(n, "sample") for n in (0, 1, 1200)] == [
        "0 samples",
        "1 sample",
        "1,200 samples",
    ]


def test_list_of_kinds(vistoken):
    assert vistoken("list").out.split() == vistoken("list", "--json").data


def test_every_part_is_listed(vistoken):
    rows = vistoken("list", "parts", "--json").data
    assert {(row["kind"], row["name"]) for row in rows} == set(part_table())


def test_every_listed_tower_can_be_built(vistoken):
    from transformers import CONFIG_MAPPING

    from vistoken.models.towers import register_towers

    register_towers()
    for row in vistoken("list", "towers", "--json").data:
        assert row["model_type"] in CONFIG_MAPPING


@pytest.fixture
def healthy(monkeypatch):
    """Nothing is imported in another process; complaints by module name."""
    complaints = {}
    monkeypatch.setattr(checks, "import_complaint", complaints.get)
    return complaints


def found(outcome):
    return {finding["name"]: finding for finding in outcome.data["findings"]}


def test_doctor_on_a_healthy_machine(vistoken, healthy, tmp_path, monkeypatch):
    monkeypatch.setenv("VISTOKEN_HOME", str(tmp_path))
    outcome = vistoken("doctor", "--json")
    assert outcome.code == 0
    assert outcome.data["healthy"]
    findings = found(outcome)
    assert findings["torch"]["found"] == torch.__version__
    assert findings["cache"]["found"].startswith(str(tmp_path))
    assert findings["nano"]["state"] == "warning"
    assert findings["nano"]["fix"] == "vistoken data fetch nano"
    assert "ok " in vistoken("doctor").out


def test_doctor_finds_an_unfitting_torchvision(vistoken, healthy, monkeypatch):
    real = checks.installed
    monkeypatch.setattr(
        checks, "installed", lambda name: "0.28.0" if name == "torchvision" else real(name)
    )
    healthy["torchvision"] = "RuntimeError: operator torchvision::nms does not exist"
    outcome = vistoken("doctor", "--json")
    assert outcome.code == 5
    assert not outcome.data["healthy"]
    finding = found(outcome)["torchvision"]
    assert finding["state"] == "broken"
    assert "nms" in finding["found"]
    assert finding["fix"].endswith("-m pip uninstall -y torchvision")
    assert "BROKEN" in vistoken("doctor").out
    del healthy["torchvision"]
    assert vistoken("doctor").code == 0


def test_doctor_finds_missing_libraries_and_extras(vistoken, healthy, monkeypatch):
    real = checks.installed
    monkeypatch.setattr(checks, "installed", lambda name: None if name == "peft" else real(name))
    monkeypatch.setitem(checks._EXTRAS, "nano", ("gguf_that_nobody_has",))
    outcome = vistoken("doctor", "--json")
    assert outcome.code == 5
    assert found(outcome)["peft"]["state"] == "broken"
    extra = found(outcome)["extra nano"]
    assert extra["state"] == "warning"
    assert extra["fix"].endswith("pip install 'vistoken[nano]'")


def test_doctor_names_an_import_that_fails():
    assert checks.import_complaint("json") is None
    assert "no_such_module" in checks.import_complaint("no_such_module")


def test_doctor_finds_a_cache_that_cannot_be_written(vistoken, healthy, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VISTOKEN_HOME", str(tmp_path / "file" / "below"))
    outcome = vistoken("doctor", "--json")
    assert outcome.code == 5
    assert "VISTOKEN_HOME" in found(outcome)["cache"]["fix"]


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """A small set of scenes, made by the verb."""
    from vistoken.cli.main import run

    out = tmp_path_factory.mktemp("data") / "scenes"
    words = ["--source", "shapes", "--train", "2", "--val", "1", "--size", "112"]
    assert run(["data", "make", str(out), *words]) == 0
    return out


def test_data_make(vistoken, scenes, tmp_path):
    rows = [json.loads(line) for line in (scenes / "train.jsonl").read_text().splitlines()]
    assert len({row["messages"][0]["content"][0]["path"] for row in rows}) == 2
    assert all((scenes / row["messages"][0]["content"][0]["path"]).is_file() for row in rows)
    again = tmp_path / "again"
    words = ("--source", "shapes", "--train", 2, "--val", 1, "--size", 112)
    outcome = vistoken("data", "make", again, *words, "--json")
    assert outcome.data["scenes"] == {"train": 2, "val": 1}
    assert "train.jsonl" in outcome.data["files"]
    assert (again / "train.jsonl").read_bytes() == (scenes / "train.jsonl").read_bytes()


def test_data_make_says_what_it_would_do(vistoken, tmp_path):
    outcome = vistoken("data", "make", tmp_path / "new", "--dry-run", "--json")
    assert outcome.data["written"] is False
    assert list(tmp_path.iterdir()) == []


def test_data_make_keeps_what_is_there(vistoken, scenes):
    vistoken("data", "make", scenes, "--source", "shapes").failed(3, "empty")
    vistoken("data", "make", "x", "--source", "icon").failed(2, "'icons'")
    vistoken("data", "make", "x", "--source", "shapes", "--size", 8).failed(2, "size_px")


def test_data_preview(vistoken, scenes, tmp_path):
    page = tmp_path / "page.html"
    dry = vistoken("data", "preview", scenes / "train.jsonl", page, "--dry-run")
    assert dry.code == 0
    assert not page.exists()
    assert vistoken("data", "preview", scenes / "train.jsonl", page, "--limit", 1).code == 0
    assert page.read_text().count("<figure>") == 1
    vistoken("data", "preview", tmp_path / "gone.jsonl", page).failed(3, "gone.jsonl")
    vistoken("data", "preview", scenes / "train.jsonl", tmp_path).failed(2, "is a folder")


def test_data_preview_of_a_damaged_file(vistoken, scenes, tmp_path):
    copy = shutil.copytree(scenes, tmp_path / "copy")
    lines = (copy / "train.jsonl").read_text().splitlines()
    (copy / "train.jsonl").write_text("\n".join([lines[0], "{", *lines[1:]]))
    vistoken("data", "preview", copy / "train.jsonl", tmp_path / "p.html").failed(3, "line 2")
    assert not (tmp_path / "p.html").exists()


def test_data_fetch_says_what_it_would_do(vistoken, tmp_path, monkeypatch):
    monkeypatch.setenv("VISTOKEN_HOME", str(tmp_path))
    for asset, count in (("nano", 3), ("photograph", 1)):
        outcome = vistoken("data", "fetch", asset, "--dry-run", "--json")
        assert outcome.code == 0
        assert [row["ready"] for row in outcome.data["files"]] == [False] * count
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def run_file(scenes, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        json.dumps(
            {
                "recipe": "pico",
                "data": [str(scenes / "train.jsonl")],
                "output": str(tmp_path / "run"),
                "stages": [
                    {
                        "name": "joint",
                        "steps": 2,
                        "groups": {"connector": {"train": "full"}, "language": {"train": "lora"}},
                    }
                ],
            }
        )
    )
    return path


def test_train_dry_run_writes_nothing(vistoken, run_file, tmp_path):
    outcome = vistoken("train", run_file, "--device", "cpu", "--dry-run", "--json")
    assert outcome.code == 0, outcome
    (stage,) = outcome.data["stages"]
    assert stage["name"] == "joint"
    assert {g["name"]: g["train"] for g in stage["groups"]} == {
        "vision": "frozen",
        "connector": "full",
        "spatial": "frozen",
        "mechanisms": "frozen",
        "language": "lora",
    }
    assert outcome.data["model"] is None
    assert not (tmp_path / "run").exists()
    text = vistoken("train", run_file, "--device", "cpu", "--dry-run")
    assert "GiB in all" in text.out
    assert "would write" in text.out
    lines = [line for line in text.out.splitlines() if "would write" not in line]  # a path
    assert all(len(line) <= 80 for line in lines), text.out


def test_train_then_merge_then_ask(vistoken, run_file, tmp_path, image):
    outcome = vistoken("train", run_file, "stages.joint.steps=1", "--device", "cpu")
    assert outcome.code == 0, outcome
    light = tmp_path / "run" / "model"
    assert f"vistoken merge {light}" in outcome.out
    vistoken("merge", tmp_path / "run", tmp_path / "full").failed(2, f"model is in {light}")
    vistoken("chat", "-m", tmp_path / "run", "What?").failed(4, f"model is in {light}")
    vistoken("train", run_file, "--device", "cpu").failed(2, "--resume")

    dry = vistoken("merge", light, tmp_path / "full", "--dry-run", "--json")
    assert dry.data["adapter"] is True
    assert not (tmp_path / "full").exists()
    merged = vistoken("merge", light, tmp_path / "full", "--json")
    assert merged.code == 0, merged
    assert merged.data["written"] is True
    report = vistoken("inspect", "checkpoint", tmp_path / "full", "--json").data
    assert report["kind"] == "full"
    assert not any("lora" in tensor["name"] for tensor in report["tensors"])
    chat = ("chat", "-m", tmp_path / "full", "--max-new-tokens", 3, image, "--json", "What?")
    assert vistoken(*chat).data["visual_tokens"] == 18
    vistoken("merge", light, tmp_path / "full").failed(2, "not empty")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stages.joint.stepz=1", ["'steps'"]),
        ("stages.join.steps=1", ["'joint'"]),
        ("nonsense", ["stages.joint.steps=100"]),
        ("recipe=pcio", ["'pico'"]),
    ],
)
def test_train_refuses_wrong_overrides(vistoken, run_file, override, words):
    vistoken("train", run_file, override, "--dry-run").failed(2, *words)


def test_a_recipe_with_two_runs_says_which_one_has_a_stage(vistoken):
    words = ("train", "nano", "--data", "my.json")
    vistoken(*words, "stages.align.steps=1").failed(2, "'align'", "add --from-scratch")
    vistoken(*words, "--from-scratch", "stages.tune.steps=1").failed(2, "leave --from-scratch out")
    vistoken("train", "nano").failed(2, "--data FILE")


def test_train_refuses_bad_data(vistoken, run_file, scenes, tmp_path):
    vistoken("train", run_file, "data=[gone.jsonl]", "--dry-run").failed(3, "gone.jsonl")
    vistoken("train", run_file, "--device", "tpu").failed(2, "tpu")
    vistoken("train", run_file, "--data", "x.jsonl").failed(2, "YAML")
    assert not (tmp_path / "run").exists()


def test_merge_refuses_what_is_not_light(vistoken, full_checkpoint, tmp_path):
    vistoken("merge", full_checkpoint, tmp_path / "out").failed(2, "not a light checkpoint")
    vistoken("merge", tmp_path / "gone", tmp_path / "out").failed(4, "gone")
    assert not (tmp_path / "out").exists()
