"""Official LLaVA-SP releases: every number they gave, and one sentence for every broken one."""

import json
import os
import shutil
from functools import cache
from pathlib import Path

import PIL
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

import vistoken
import vistoken.models
from vistoken.convert.llava import convert_llava_sp
from vistoken.convert.tokenizers import read_tokenizer
from vistoken.core.errors import UsageError, WeightsError
from vistoken.models.checkpoint import merge_adapter

GOLDEN = Path(__file__).parents[1] / "golden" / "llava-sp"
FOLDERS = {
    "release_pooling": "llava-sp-pooling-lora",
    "release_cropping": "llava-sp-cropping-lora",
    "release_pooling_anyres": "llava-sp-pooling-lora",
}
VARIANTS = {"release_pooling": "pooling", "release_cropping": "cropping"}
CASES = [(name, merge) for name in FOLDERS for merge in (False, True)]
TOLERANCE = 1e-3
# Recorded with Pillow 13; before it, resizing rounds some pixels of AnyRes otherwise.
SAME_PIXELS = int(PIL.__version__.partition(".")[0]) >= 13
NON_LORA = "non_lora_trainables.bin"
STEM = "base_model.model.model."


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A function: name of a golden release, merged or not -> converted directory."""
    root = tmp_path_factory.mktemp("converted")

    @cache
    def convert(name: str, merge: bool) -> Path:
        out = root / f"{name}-{merge}"
        convert_llava_sp(GOLDEN / name / FOLDERS[name], out, merge=merge)
        return out

    return convert


@pytest.fixture
def release(tmp_path):
    """A copy of the pooling release, with its base and tower beside it, to break."""
    shutil.copytree(GOLDEN / "release_pooling", tmp_path / "golden", copy_function=shutil.copy)
    for path in (tmp_path / "golden").rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return tmp_path / "golden" / FOLDERS["release_pooling"]


def golden_cases(name: str):
    """Number, question, prompt, picture and expected tensors of each golden case."""
    expected = load_file(GOLDEN / name / "expected.safetensors")
    cases = json.loads((GOLDEN / name / "README.json").read_text())["cases"]
    for number, case in enumerate(cases):
        question = case["prompt"].split("<image>\n")[1].removesuffix(" ASSISTANT:")
        tensors = {k[2:]: v for k, v in expected.items() if k.startswith(f"{number}.")}
        yield question, case["prompt"], GOLDEN / name / case["image"], tensors, case["logits_shape"]


def check_golden(model, processor, name: str) -> None:
    """Compare prompt, ids, pixels, logits and greedy tokens of every golden case."""
    for question, prompt, picture, expected, shape in golden_cases(name):
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        assert text == prompt
        inputs = processor(text=text, images=str(picture), return_tensors="pt")
        ids = inputs["input_ids"][0].tolist()
        assert len(ids) == shape[1]
        wanted = expected["input_ids"][0].tolist()
        mark = wanted.index(-200)
        visual = [processor.image_token_id] * (len(ids) - len(wanted) + 1)
        assert ids == wanted[:mark] + visual + wanted[mark + 1 :]
        pixels = expected["pixel_values"].flatten(0, -4)
        step = inputs["pixel_values"].shape[-1] // pixels.shape[-1]
        shown = inputs["pixel_values"][:, :, ::step, ::step]
        same = SAME_PIXELS or not name.endswith("anyres")
        # a grey level is 1/255 before the division by the deviation, which is above 0.25
        assert (shown - pixels).abs().max() <= (0.0 if same else 1.1 / 255 / 0.25)
        inputs.pop("mm_token_type_ids", None)
        with torch.inference_mode():
            logits = model(**inputs, logits_to_keep=4).logits[0, :, : shape[2]]
            tokens = model.generate(**inputs, max_new_tokens=24, do_sample=False)
        assert (logits - expected["logits_last4"]).abs().max() < (TOLERANCE if same else 0.5)
        # the official code keeps the start token in front of what it generates
        assert tokens[0, len(ids) :].tolist() == expected["generated_ids"][0, 1:].tolist()


@pytest.mark.parametrize(("name", "merge"), CASES)
def test_load_reproduces_the_release(converted, name, merge) -> None:
    model, processor = vistoken.load(converted(name, merge), device="cpu", dtype="float32")
    check_golden(model, processor, name)


@pytest.mark.parametrize(("name", "merge"), CASES)
def test_auto_classes_reproduce_the_release(converted, name, merge) -> None:
    model = AutoModelForImageTextToText.from_pretrained(converted(name, merge))
    processor = AutoProcessor.from_pretrained(converted(name, merge))
    # unmerged, LoRA runs beside the weights it changes
    assert any("lora_" in name for name, _ in model.named_parameters()) is not merge
    check_golden(model.eval(), processor, name)


def test_the_tower_has_lora_too(converted) -> None:
    """Official adapters reach into the vision tower; without that part the logits are off by 10."""
    model = AutoModelForImageTextToText.from_pretrained(converted("release_pooling", False))
    adapted = [n for n, _ in model.named_parameters() if "lora_B" in n and "vision_tower" in n]
    assert len(adapted) == 9
    before = model.model.vision_tower.encoder.layers[0].self_attn.q_proj.weight.clone()
    merge_adapter(model)
    after = model.model.vision_tower.encoder.layers[0].self_attn.q_proj.weight
    assert (after - before).abs().max() > 0.01


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_is_told_by_the_keys(tmp_path, name) -> None:
    renamed = tmp_path / "some-model"
    shutil.copytree(GOLDEN / name / FOLDERS[name], renamed)
    report = convert_llava_sp(
        renamed,
        tmp_path / "out",
        base=GOLDEN / name / "tiny-vicuna",
        vision_tower=GOLDEN / name / "tiny-clip",
        dry_run=True,
    )
    assert report.connector == f"llava-sp {VARIANTS[name]}"


def test_dry_run_lists_every_tensor_and_writes_nothing(release, tmp_path) -> None:
    out = tmp_path / "out"
    before = sorted(tmp_path.rglob("*"))
    report = convert_llava_sp(release, out, dry_run=True)
    assert sorted(tmp_path.rglob("*")) == before
    assert not report.written
    keys = {
        *torch.load(release / NON_LORA, weights_only=True),
        *torch.load(release / "adapter_model.bin", weights_only=True),
    }
    assert {row.key for row in report.rows} == keys
    assert all(row.target for row in report.rows)
    assert report.counts == {"connector": 11, "lora": 46}
    assert json.loads(json.dumps(report.to_json()))["result"] == "light"


def test_tokenizer_keeps_its_ids_when_saved_again(converted, tmp_path) -> None:
    processor = AutoProcessor.from_pretrained(converted("release_pooling", True))
    text = "A chat. USER: hi ASSISTANT: yes</s>USER: \nWhat? ASSISTANT: no</s>"
    # of spec and sentencepiece: after an end token, legacy=False adds no space mark
    ids = [1, 312, 437, 553, 435, 564, 345, 535, 444, 564, 531, 556, 266, 2, 574, 427, 564, 531]
    assert processor.tokenizer(text)["input_ids"][:18] == ids
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert again.tokenizer(text)["input_ids"] == processor.tokenizer(text)["input_ids"]
    assert again.tokenizer.model_max_length == 2048


def test_full_checkpoint_needs_no_other_files(converted) -> None:
    folder = converted("release_pooling", True)
    assert not (folder / "references.json").exists()
    # nothing in it points back to where it came from
    for path in folder.glob("*.json"):
        assert str(GOLDEN) not in path.read_text()


def test_projector_only_release(release, tmp_path) -> None:
    """Stage 1 of LLaVA-SP: `model.bin`, the language model untouched."""
    weights = torch.load(release / NON_LORA, weights_only=True)
    weights = {key.replace(STEM, "model."): value for key, value in weights.items()}
    for path in (NON_LORA, "adapter_model.bin", "adapter_config.json"):
        (release / path).unlink()
    torch.save(weights, release / "model.bin")
    base = release.parent / "tiny-vicuna"
    report = convert_llava_sp(release, tmp_path / "out", base=base)
    assert (report.kind, report.result) == ("connector", "light")
    model, _ = vistoken.load(tmp_path / "out", device="cpu", dtype="float32")
    plain = load_file(base / "model.safetensors")
    assert torch.equal(model.lm_head.weight[:600], plain["lm_head.weight"])


def merged_release(release: Path, shards: int) -> None:
    """Turn the LoRA release into a merged one, in pickled shards with an index."""
    weights = torch.load(release / NON_LORA, weights_only=True)
    weights = {key.replace(STEM, "model."): value for key, value in weights.items()}
    weights |= load_file(release.parent / "tiny-vicuna" / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    for path in (NON_LORA, "adapter_model.bin", "adapter_config.json"):
        (release / path).unlink()
    names = sorted(weights)
    places = {}
    for shard in range(shards):
        file = f"pytorch_model-{shard + 1:05}-of-{shards:05}.bin"
        part = {name: weights[name] for name in names[shard::shards]}
        torch.save(part, release / file)
        places |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": places}
    (release / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def test_merged_release_in_shards(release, tmp_path) -> None:
    weights = torch.load(release / NON_LORA, weights_only=True)
    merged_release(release, shards=3)
    report = convert_llava_sp(release, tmp_path / "out")
    assert (report.kind, report.result, report.base) == ("merged", "full", None)
    unused = [row.key for row in report.rows if row.use == "unused"]
    assert unused == ["model.layers.0.self_attn.rotary_emb.inv_freq"]
    model, processor = vistoken.load(tmp_path / "out", device="cpu", dtype="float32")
    kernels = model.model.multi_modal_projector.get_submodule("llava-sp.spatial_extractor.kernels")
    assert torch.equal(kernels[0].weight, weights[f"{STEM}conv_4.1.weight"])
    inputs = processor(text="<image>\nhi", images=str(release.parent / "images/0.png"))
    assert len(inputs["input_ids"][0]) > 582


def test_a_temperature_without_sampling_is_no_obstacle(release, tmp_path) -> None:
    """Vicuna's own generation config, which transformers refuses to save as it stands."""
    path = release.parent / "tiny-vicuna" / "generation_config.json"
    values = {"temperature": 0.9, "top_p": 0.6, "max_length": 4096, "eos_token_id": 2}
    path.write_text(json.dumps(values))
    convert_llava_sp(release, tmp_path / "out", merge=True)
    saved = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert "temperature" not in saved
    assert (saved["max_length"], saved["suppress_tokens"]) == (4096, [600])


def test_plain_llava_release(release, tmp_path) -> None:
    """Without spatial kernels it is LLaVA-1.5: the chain is `mlp`, under Hugging Face's names."""
    edit(release, lambda w: [w.pop(key) for key in list(w) if "mm_projector" not in key])
    report = convert_llava_sp(release, tmp_path / "out", merge=True)
    assert report.connector == "mlp"
    state = load_file(tmp_path / "out" / "model.safetensors")
    assert "model.multi_modal_projector.linear_1.weight" in state
    assert not any("llava-sp" in name for name in state)
    vistoken.load(tmp_path / "out", device="cpu", dtype="float32")


def edit(release: Path, change, file: str = NON_LORA) -> None:
    """Change a pickled state dict in place."""
    weights = torch.load(release / file, weights_only=True)
    change(weights)
    torch.save(weights, release / file)


def set_config(release: Path, **values) -> None:
    path = release / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


class Runs:
    """What a pickle with code looks like: unpickling it would create a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def lose_a_kernel(release: Path) -> None:
    edit(release, lambda w: w.pop(f"{STEM}conv_8.1.weight"))


def lose_a_bias(release: Path) -> None:
    edit(release, lambda w: w.pop(f"{STEM}mm_projector.2.bias"))


def add_a_key(release: Path) -> None:
    edit(release, lambda w: w.update({f"{STEM}conv_99x": torch.ones(1)}))


def reshape_a_key(release: Path) -> None:
    edit(release, lambda w: w.update({f"{STEM}conv_linear.1.weight": torch.ones(32, 5)}))


def lose_half_a_lora(release: Path) -> None:
    key = f"{STEM}layers.1.mlp.up_proj.lora_B.weight"
    edit(release, lambda w: w.pop(key), "adapter_model.bin")


def lose_a_whole_lora(release: Path) -> None:
    stem = f"{STEM}layers.1.mlp.up_proj.lora_"
    edit(release, lambda w: [w.pop(f"{stem}{m}.weight") for m in "AB"], "adapter_model.bin")


def lose_the_connector(release: Path) -> None:
    (release / NON_LORA).unlink()


def pickle_code(release: Path) -> None:
    torch.save({"a": Runs(release.parent.parent / "ran")}, release / NON_LORA)


def cut_a_file(release: Path) -> None:
    data = (release / NON_LORA).read_bytes()
    (release / NON_LORA).write_bytes(data[: len(data) // 2])


def lose_the_base(release: Path) -> None:
    shutil.rmtree(release.parent / "tiny-vicuna")


def lose_the_tower(release: Path) -> None:
    shutil.rmtree(release.parent / "tiny-clip")


def widen_the_base(release: Path) -> None:
    path = release.parent / "tiny-vicuna" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_size": 64}))


def thin_the_base(release: Path) -> None:
    """The config agrees, the weights do not."""
    path = release.parent / "tiny-vicuna" / "model.safetensors"
    state = load_file(path)
    state.pop("model.layers.1.mlp.up_proj.weight")
    from safetensors.torch import save_file

    save_file(state, path)


def mark_images(release: Path) -> None:
    set_config(release, mm_use_im_start_end=True)


def ask_for_an_unknown_view(release: Path) -> None:
    set_config(release, image_aspect_ratio="anyres_max_9")


def break_the_config(release: Path) -> None:
    (release / "config.json").write_text("{")


def lose_a_shard(release: Path) -> None:
    merged_release(release, shards=3)
    (release / "pytorch_model-00002-of-00003.bin").unlink()


def lose_the_index(release: Path) -> None:
    merged_release(release, shards=3)
    (release / "pytorch_model.bin.index.json").unlink()


FAULTS = [
    (lose_a_kernel, [NON_LORA, "conv_8"]),
    (lose_a_bias, [NON_LORA, "model.mm_projector.2.bias is missing"]),
    (add_a_key, [NON_LORA, "conv_99x", "unexpected"]),
    (reshape_a_key, [NON_LORA, "conv_linear.1.weight", "(32, 5)", "(32, 4)"]),
    (lose_half_a_lora, ["adapter_model.bin", "layers.1.mlp.up_proj.lora_B"]),
    (lose_a_whole_lora, ["adapter_model.bin", "layers.1.mlp.up_proj.lora_A"]),
    (lose_the_connector, [NON_LORA]),
    (pickle_code, [NON_LORA, "pickled code"]),
    (cut_a_file, [NON_LORA, "damaged"]),
    (lose_the_base, ["tiny-vicuna", "--base"]),
    (lose_the_tower, ["tiny-clip", "--vision-tower"]),
    (widen_the_base, ["tiny-vicuna", "hidden_size is 64", "--base"]),
    (thin_the_base, ["tiny-vicuna", "layers.1.mlp.up_proj.weight", "--base"]),
    (mark_images, ["config.json", "mm_use_im_start_end"]),
    (ask_for_an_unknown_view, ["config.json", "anyres_max_9"]),
    (break_the_config, ["config.json"]),
    (lose_a_shard, ["pytorch_model-00002-of-00003.bin"]),
    (lose_the_index, ["pytorch_model.bin.index.json"]),
]


@pytest.mark.parametrize(("fault", "words"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
def test_a_broken_release_is_one_sentence(release, tmp_path, fault, words) -> None:
    fault(release)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(WeightsError) as caught:
        convert_llava_sp(release, tmp_path / "out", merge=True)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    assert sorted(tmp_path.rglob("*")) == before  # nothing half-written, and no code ran
    with pytest.raises(WeightsError) as dry:
        convert_llava_sp(release, tmp_path / "out", merge=True, dry_run=True)
    assert str(dry.value) == message


def add_to_tokenizer(folder: Path, *tokens: str) -> None:
    tokenizer = read_tokenizer(folder)
    tokenizer.add_tokens(list(tokens), special_tokens=True)
    (folder / "tokenizer.model").unlink()
    tokenizer.save_pretrained(folder)


def resize_vocabulary(release: Path, rows: int, *names: str) -> dict[str, torch.Tensor]:
    """Put embeddings of another number of rows into the release, as training with [PAD] does."""
    generator = torch.Generator().manual_seed(0)
    new = {f"base_model.model.{n}": torch.randn(rows, 32, generator=generator) for n in names}
    edit(release, lambda w: w.update(new))
    set_config(release, vocab_size=rows)
    return new


def test_a_resized_vocabulary_is_the_releases_own(release, tmp_path) -> None:
    names = ("model.embed_tokens.weight", "lm_head.weight")
    new = resize_vocabulary(release, 601, *names)
    add_to_tokenizer(release, "[PAD]")
    with pytest.raises(UsageError, match="--merge"):
        convert_llava_sp(release, tmp_path / "out")
    convert_llava_sp(release, tmp_path / "out", merge=True)
    model, processor = vistoken.load(tmp_path / "out", device="cpu", dtype="float32")
    assert torch.equal(model.lm_head.weight[:601], new["base_model.model.lm_head.weight"])
    assert processor.tokenizer.convert_tokens_to_ids("[PAD]") == 600
    assert processor.image_token_id == model.config.image_token_id == 601


def test_half_a_resized_vocabulary_is_refused(release, tmp_path) -> None:
    resize_vocabulary(release, 601, "model.embed_tokens.weight")
    with pytest.raises(WeightsError, match="vocab_size is 600"):
        convert_llava_sp(release, tmp_path / "out", merge=True)


def test_extra_tokens_without_rows_are_named(release, tmp_path) -> None:
    add_to_tokenizer(release, "[PAD]")
    with pytest.raises(WeightsError, match=r"extra tokens '\[PAD\]'.*600"):
        convert_llava_sp(release, tmp_path / "out", merge=True)


def test_an_image_token_of_its_own_is_kept(release, tmp_path) -> None:
    resize_vocabulary(release, 608, "model.embed_tokens.weight", "lm_head.weight")
    add_to_tokenizer(release, "[PAD]", "<image>")
    with pytest.raises(UsageError, match="<image> among.*--merge"):
        convert_llava_sp(release, tmp_path / "out")
    convert_llava_sp(release, tmp_path / "out", merge=True)
    model, processor = vistoken.load(tmp_path / "out", device="cpu", dtype="float32")
    assert processor.image_token_id == model.config.image_token_id == 601
    assert model.lm_head.weight.shape[0] == model.config.text_config.vocab_size == 608
    inputs = processor(
        text="<image>\nhi", images=str(release.parent / "images/0.png"), return_tensors="pt"
    )
    with torch.inference_mode():
        assert model(**inputs).logits.isfinite().all()
    saved = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert saved["suppress_tokens"] == [601]


def test_an_image_token_beyond_the_rows_is_said_so(release, tmp_path) -> None:
    add_to_tokenizer(release, "<image>")
    with pytest.raises(WeightsError, match="<image> has id 600.*600 rows"):
        convert_llava_sp(release, tmp_path / "out", merge=True)


def test_an_occupied_output_is_refused(release, tmp_path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        convert_llava_sp(release, out)
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_a_retrained_head_needs_merge(release, tmp_path) -> None:
    head = torch.randn(600, 32, generator=torch.Generator().manual_seed(0))
    edit(release, lambda w: w.update({"base_model.model.lm_head.weight": head}))
    with pytest.raises(UsageError, match="--merge"):
        convert_llava_sp(release, tmp_path / "out")
    convert_llava_sp(release, tmp_path / "out", merge=True)
    state = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(state["lm_head.weight"][:600], head)
    assert not state["lm_head.weight"][600].any()


def test_an_interrupted_write_leaves_nothing(release, tmp_path, monkeypatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vistoken.convert.llava.save_torch_state_dict", stop)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(KeyboardInterrupt):
        convert_llava_sp(release, tmp_path / "out", merge=True)
    assert sorted(tmp_path.rglob("*")) == before
