"""To the official file layout and back: the same tensors, the same names, the same answers."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, LlamaConfig, LlamaForCausalLM

from vistoken.cli.main import run
from vistoken.convert.export_llava_sp import export_llava_sp
from vistoken.convert.llava import convert_llava_sp
from vistoken.core.errors import UsageError, WeightsError
from vistoken.models.build import build, references_of
from vistoken.models.checkpoint import save_full, save_light
from vistoken.models.recipe import load_recipe

from .test_export_llava_hf import recipe_with
from .test_llava_sp import FOLDERS, GOLDEN, NON_LORA

OFFICIAL_FIELDS = ("image_aspect_ratio", "image_grid_pinpoints", "model_type", "vocab_size")


def read(path):
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, weights_only=True)


def equal(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture
def golden(tmp_path):
    """A function: name of a golden release -> a copy of its folder, base and tower beside it."""

    def copy(name):
        shutil.copytree(GOLDEN / name, tmp_path / "golden", copy_function=shutil.copy)
        for path in (tmp_path / "golden").rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        return tmp_path / "golden" / FOLDERS[name]

    return copy


@pytest.mark.parametrize("name", FOLDERS)
def test_a_release_comes_back_as_it_was(golden, tmp_path, name) -> None:
    release = golden(name)
    convert_llava_sp(release, tmp_path / "ours")
    out = tmp_path / "golden" / "exported"
    report = export_llava_sp(tmp_path / "ours", out, base="tiny-vicuna", vision_tower="tiny-clip")
    assert report.written
    assert equal(read(out / NON_LORA), read(release / NON_LORA))
    assert equal(read(out / "adapter_model.safetensors"), read(release / "adapter_model.bin"))
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (release, out))
    for field in (*OFFICIAL_FIELDS, *(k for k in before if k.startswith("mm_")), "rope_theta"):
        assert after.get(field) == before.get(field), field
    settings = [
        json.loads((folder / "adapter_config.json").read_text()) for folder in (release, out)
    ]
    for field in ("r", "lora_alpha", "lora_dropout", "base_model_name_or_path", "peft_type"):
        assert settings[0][field] == settings[1][field], field
    assert set(settings[1]["target_modules"]) == set(settings[0]["target_modules"])
    assert (out / "tokenizer.model").read_bytes() == (release / "tokenizer.model").read_bytes()

    convert_llava_sp(out, tmp_path / "again")
    for file in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert equal(read(tmp_path / "again" / file), read(tmp_path / "ours" / file))
    for file in ("chat_template.jinja", "tokenizer.json"):
        first, second = (tmp_path / f / file for f in ("ours", "again"))
        assert first.read_text() == second.read_text()


@pytest.mark.parametrize("name", ["release_cropping"])
def test_merging_folds_in_the_towers_adapter_too(golden, tmp_path, name) -> None:
    """`merge` of the light checkpoint and a merged conversion are the same model."""
    release = golden(name)
    convert_llava_sp(release, tmp_path / "light")
    convert_llava_sp(release, tmp_path / "expected", merge=True)
    assert run(["merge", str(tmp_path / "light"), str(tmp_path / "full")]) == 0
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "full").state_dict()
    wanted = AutoModelForImageTextToText.from_pretrained(tmp_path / "expected").state_dict()
    assert merged.keys() == wanted.keys()
    for key, tensor in wanted.items():
        torch.testing.assert_close(merged[key], tensor, atol=1e-6, rtol=1e-6)
    tower = load_file(tmp_path / "golden" / "tiny-clip" / "model.safetensors")
    key = "encoder.layers.0.self_attn.q_proj.weight"
    plain = next(tensor for name, tensor in tower.items() if name.endswith(key))
    assert (merged[f"model.vision_tower.{key}"] - plain).abs().max() > 0.01


def trained(tmp_path, targets=None, **changes):
    """A light checkpoint of ours over a language model and a tower on disk."""
    text = {**load_recipe("pico").language_model.config, "vocab_size": 600}
    golden = GOLDEN / "release_pooling"
    base, tower = tmp_path / "base", tmp_path / "tower"
    torch.manual_seed(0)
    config = {k: v for k, v in text.items() if k != "model_type"}
    LlamaForCausalLM(LlamaConfig(**config)).save_pretrained(base)
    for file in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(golden / "tiny-vicuna" / file, base / file)
    recipe = recipe_with(
        template="vicuna-v1",
        language_model={"source": str(base), "config": text},
        **changes,
    )
    pico, _ = build(load_recipe("pico"))
    pico.model.vision_tower.save_pretrained(tower)
    shutil.copyfile(golden / "tiny-clip" / "preprocessor_config.json", tower / "p.json")
    pixels = json.loads((tower / "p.json").read_text())
    pixels |= {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    (tower / "preprocessor_config.json").write_text(json.dumps(pixels))
    recipe = recipe.model_copy(
        update={"towers": [recipe.towers[0].model_copy(update={"source": str(tower)})]}
    )
    model, processor = build(recipe)
    if targets:
        model.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=targets))
    save_light(model, processor, tmp_path / "ours", references_of(recipe))
    return tmp_path / "ours"


ALL = r"model\.language_model\..*\.(q|k|v|o|gate|up|down)_proj"
SOME = r"model\.language_model\.layers\.1\..*\.q_proj"


@pytest.mark.parametrize("connector", ["mlp", "llava-sp"])
@pytest.mark.parametrize("targets", [None, ALL, SOME])
def test_what_we_trained_goes_out_and_comes_back(tmp_path, connector, targets) -> None:
    options = {"variant": "pooling", "width": 16, "scales": [2, 4]}
    chain = ["mlp"] if connector == "mlp" else [{"part": "llava-sp", "options": options}]
    ours = trained(tmp_path, targets, connector=chain)
    export_llava_sp(ours, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "tokenizer.model", "tokenizer_config.json"} <= names
    if targets is None:
        assert ("mm_projector.bin" if connector == "mlp" else "model.bin") in names
    else:
        settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
        wanted = ["model.layers.1.self_attn.q_proj"] if targets == SOME else "gate_proj"
        assert settings["target_modules"] == wanted or wanted in settings["target_modules"]
    report = convert_llava_sp(
        tmp_path / "out",
        tmp_path / "again",
        base=tmp_path / "base",
        vision_tower=tmp_path / "tower",
    )
    assert report.connector == (connector if connector == "mlp" else "llava-sp pooling")
    files = ["model.safetensors", *(["adapter/adapter_model.safetensors"] if targets else [])]
    for file in files:
        assert equal(read(tmp_path / "again" / file), read(ours / file))


REFUSED = {
    "stride": [
        {"part": "llava-sp", "options": {"width": 16, "detail_stride": 1, "scales": [2, 4]}}
    ],
    "separable": [{"part": "llava-sp", "options": {"width": 16, "kernel": "separable"}}],
    "scales": [{"part": "llava-sp", "options": {"width": 16, "scales": [2]}}],
    "pool": ["mlp", {"part": "pool", "options": {"grid": [2, 2]}}],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_layout_cannot_record_is_refused(tmp_path, name) -> None:
    ours = trained(tmp_path, connector=REFUSED[name])
    with pytest.raises(UsageError) as caught:
        export_llava_sp(ours, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_other_faults_are_one_sentence(tmp_path) -> None:
    ours = trained(tmp_path, connector=["mlp"])
    path = ours / "chat_template.jinja"
    template = path.read_text()
    path.write_text("{{ messages }}")
    with pytest.raises(UsageError, match="chat template is none of"):
        export_llava_sp(ours, tmp_path / "out")
    path.write_text(template)
    (tmp_path / "base" / "tokenizer.model").unlink()
    with pytest.raises(WeightsError, match="with a tokenizer"):
        export_llava_sp(ours, tmp_path / "out")
    pico = build(load_recipe("pico"))
    save_full(*pico, tmp_path / "full")
    with pytest.raises(UsageError, match="full checkpoint"):
        export_llava_sp(tmp_path / "full", tmp_path / "out")
    save_light(*pico, tmp_path / "random", references_of(load_recipe("pico")))
    with pytest.raises(UsageError, match="random weights"):
        export_llava_sp(tmp_path / "random", tmp_path / "out")


def test_the_verbs(tmp_path, capsys) -> None:
    ours = trained(tmp_path, ALL, connector=["mlp"])
    for verb in ("to-llava-hf", "to-llava-sp"):
        out = str(tmp_path / verb)
        assert run(["convert", verb, str(ours), out, "--dry-run", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["written"] is False
        assert run(["convert", verb, str(ours), out]) == 0
        assert (tmp_path / verb / "config.json").is_file()
        assert run(["convert", verb, str(tmp_path / "nowhere"), out]) == 4
        capsys.readouterr()
