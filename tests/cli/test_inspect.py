"""`vistoken inspect`: counts that are known exactly, tokens, prompts and damaged files."""

import contextlib
import io
import json
import shutil

import pytest
import yaml

from vistoken.models.cost import empty_model, measure_cost, part_parameters
from vistoken.models.recipe import load_recipe


def modules_of(data):
    return {module["name"]: module for module in data["modules"]}


def changed_recipe(tmp_path, **changes):
    from importlib import resources

    text = (resources.files("vistoken") / "recipes" / "pico.yaml").read_text("utf-8")
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(text), **changes}))
    return path


@pytest.fixture(scope="module")
def large():
    """What `inspect model` says of the large recipes, counted once each."""
    from vistoken.cli.main import run

    counted = {}

    def count(name):
        if name not in counted:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                assert run(["inspect", "model", name, "--json"]) == 0
            counted[name] = json.loads(printed.getvalue())
        return counted[name]

    return count


@pytest.mark.slow
def test_costs_of_the_papers_model(large):
    data = large("llava-sp-cropping-7b")
    stage = "model.multi_modal_projector.llava-sp"
    modules = modules_of(data)
    # arXiv 2507.00505: k = 4..24 in steps of 4, 512 x 1024 each; one 16x16 for the details
    squares = sum(k * k for k in range(4, 25, 4))
    assert modules[f"{stage}.spatial_extractor"]["parameters"] == 763_363_328
    assert modules[f"{stage}.spatial_extractor"]["parameters"] == squares * 512 * 1024
    assert modules[f"{stage}.detail_integrator.detail"]["parameters"] == 134_217_728
    assert modules[f"{stage}.detail_integrator"]["parameters"] == 134_217_728 + 791_040
    assert modules[f"{stage}.spatial_projector"]["parameters"] == 4_198_400
    assert modules[f"{stage}.patch_projector"]["parameters"] == 20_979_712
    assert data["parameters"]["groups"]["spatial"] == 763_363_328 + 135_008_768 + 4_198_400
    assert data["parameters"]["groups"]["connector"] == 20_979_712
    assert sum(data["parameters"]["groups"].values()) == data["parameters"]["total"]
    assert sum(data["parameters"]["parts"].values()) == data["parameters"]["total"]
    assert data["parameters"]["bytes"] == 2 * data["parameters"]["total"]
    # each convolution is applied once, a multiply-add counts twice
    assert modules[f"{stage}.spatial_extractor"]["flops"] == 2 * 763_363_328
    assert data["image"] == {"size": [336, 336], "views": 1, "visual_tokens": 582}
    # keys and values of 32 layers with 32 heads of 128, two bytes each
    assert data["cache_bytes_per_token"] == 2 * 32 * 32 * 128 * 2


@pytest.mark.slow
def test_spatial_tokens_cost_at_most_two_percent(large):
    with_tokens, without = large("llava-sp-cropping-7b"), large("llava-1.5-7b")
    assert with_tokens["flops"]["connect_spatial"] > 0
    assert without["flops"]["connect_spatial"] == 0
    assert with_tokens["image"]["visual_tokens"] == without["image"]["visual_tokens"] + 6
    for step in ("prefill", "decode_per_token"):
        assert 1 < with_tokens["flops"][step] / without["flops"][step] <= 1.02


def test_costs_are_what_a_hand_count_gives():
    recipe = load_recipe("pico")
    model = empty_model(recipe.model_config_for())
    cost = measure_cost(model, recipe.pipeline(model.config), text_tokens=10)
    tokens = cost.visual_tokens + 10
    width, inner, layers, heads, kv_heads, size = 32, 64, 2, 4, 2, 8
    kv = kv_heads * size
    linear = 2 * width * (2 * width + 2 * kv + 3 * inner)  # q and o, k and v, gate, up, down
    attention = 2 * 2 * tokens * tokens * heads * size
    head = 2 * width * 421
    # some versions make the rotary angles by a matrix product, others by a plain one
    rotary = {0, 2 * (size // 2) * tokens}
    assert cost.prefill_flops - layers * (tokens * linear + attention) - head in rotary
    attention = 2 * 2 * (tokens + 1) * heads * size
    assert cost.decode_flops - layers * (linear + attention) - head in {0, 2 * (size // 2)}
    assert cost.cache_values == 2 * layers * kv
    assert cost.total_parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.slow
def test_tied_weights_count_once():
    recipe = load_recipe("nano")
    model = empty_model(recipe.model_config_for())
    counts = part_parameters(model)
    assert counts["lm_head"] == 0
    assert sum(counts.values()) == sum(p.numel() for p in model.parameters())
    cost = measure_cost(model, recipe.pipeline(model.config))
    assert set(cost.encode_flops) == {"vision_tower.dinov2", "vision_tower.lite0"}
    assert min(cost.encode_flops.values()) > 0
    assert cost.visual_tokens == 6 + 8 * 8


def test_size_and_text_change_the_costs(vistoken, tmp_path):
    path = changed_recipe(tmp_path, views="anyres", layout="anyres-unpad")
    small, large, longer = (
        vistoken("inspect", "model", path, "--json", *words).data
        for words in (
            ("--image-size", "32x32"),
            ("--image-size", "64x64"),
            ("--image-size", "32x32", "--text-tokens", 65),
        )
    )
    assert small["image"]["views"] < large["image"]["views"]
    assert small["image"]["visual_tokens"] < large["image"]["visual_tokens"]
    views = large["image"]["views"] / small["image"]["views"]
    assert large["flops"]["encode"] == small["flops"]["encode"] * views
    assert small["flops"]["prefill"] < longer["flops"]["prefill"]
    assert small["flops"]["encode"] == longer["flops"]["encode"]
    assert small["parameters"] == large["parameters"]


def test_costs_in_a_table(vistoken):
    outcome = vistoken("inspect", "model", "pico")
    assert "vision_tower.clip" in outcome.out
    assert "prefill, 82 tokens" in outcome.out
    assert "layers.* (x2)" in outcome.out


def test_costs_of_a_checkpoint_are_those_of_its_recipe(vistoken, full_checkpoint):
    recipe = vistoken("inspect", "model", "pico", "--json").data
    checkpoint = vistoken("inspect", "model", full_checkpoint, "--json").data
    del recipe["model"], checkpoint["model"]
    assert checkpoint == recipe


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layout": "plane"}, ["'plane'", "'plain'"]),
        ({"connector": ["mpl"]}, ["'mpl'", "'mlp'"]),
        ({"conector": ["mlp"]}, ["'conector'", "'connector'"]),
        ({"connector": [{"part": "mlp", "options": {"hiden_width": 3}}]}, ["'hidden_width'"]),
        ({"template": "chatlm"}, ["'chatml'"]),
        ({"connector": ["mlp", "mlp"]}, ["mlp"]),
    ],
)
def test_faulty_recipes(vistoken, tmp_path, changes, words):
    path = changed_recipe(tmp_path, **changes)
    vistoken("inspect", "model", path, "--json").failed(2, *words)


def test_recipe_that_is_no_yaml(vistoken, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("{")
    vistoken("inspect", "model", path).failed(2, "mine.yaml", "YAML")


def test_tokens_are_those_the_model_makes(vistoken, image, pico):
    from vistoken.core.tables import TOKEN
    from vistoken.models.images import open_image

    model, processor = pico
    features = model.get_image_features(**processor.image_processor([open_image(image)]))
    outcome = vistoken("inspect", "tokens", image, "--model", "pico", "--json")
    assert outcome.data["size"] == [60, 90]
    assert outcome.data["kinds"] == {"spatial": 2, "visual": 16}
    assert len(outcome.data["tokens"]) == len(features.pooler_output[0]) == 18
    token_map = features.token_map[0]
    for column in ("row", "col", "level"):
        values = [token[column] for token in outcome.data["tokens"]]
        assert values == TOKEN.get(token_map, column).tolist()


def test_tokens_flops_and_memory_of_a_size_alone(vistoken, image):
    of_file = vistoken("inspect", "tokens", image, "--model", "pico", "--json").data
    of_size = vistoken("inspect", "tokens", "60x90", "--model", "pico", "--json").data
    assert {**of_file, "image": None} == {**of_size, "image": None}
    model = vistoken("inspect", "model", "pico", "--image-size", "60x90", "--json").data
    counted = {name: model["flops"][name] for name in of_size["flops"]}
    assert of_size["flops"] == counted
    memory = of_size["memory"]
    # buffers, such as rotary frequencies, are there beside the parameters
    assert 0 <= memory["weights"] - model["parameters"]["bytes"] < 1000
    assert memory["cache"] == memory["cache_per_token"] * (18 + 64)
    assert memory["peak"] == memory["weights"] + max(
        memory["encoding"], memory["connecting"], memory["cache"] + memory["prefill"]
    )
    assert [view["tokens"] for view in of_size["views"]] == [18]
    assert of_size["context"] == {"needed": 82, "positions": 4096, "advice": "", "fits": True}


def test_tokens_that_do_not_fit(vistoken, tmp_path):
    language = load_recipe("pico").language_model.model_dump(exclude_none=True)
    language["config"]["max_position_embeddings"] = 80
    path = changed_recipe(tmp_path, views="anyres", connector=["mlp"], language_model=language)
    outcome = vistoken("inspect", "tokens", "64x64", "--model", path)
    assert outcome.code == 0
    said = " ".join(outcome.out.split())
    for words in ("does not fit", "80 visual tokens in 5 views", "80 positions", "grids of anyres"):
        assert words in said
    data = vistoken("inspect", "tokens", "64x64", "--model", path, "--json").data
    assert data["context"]["fits"] is False
    assert data["context"]["needed"] == 144


def test_tokens_of_a_picture_of_no_size(vistoken):
    vistoken("inspect", "tokens", "0x5", "--model", "pico").failed(2, "0x5")
    vistoken("inspect", "tokens", "gone.png", "--model", "pico").failed(3, "gone.png")


def test_tokens_in_a_table(vistoken, image):
    outcome = vistoken("inspect", "tokens", image, "-m", "llava-1.5-anyres-7b", "--limit", "3")
    assert outcome.code == 0
    assert "newline" in outcome.out
    assert "3 views" in outcome.out


def test_prompt_and_its_labels(vistoken, image, pico):
    _, processor = pico
    outcome = vistoken(
        "inspect", "prompt", "-m", "pico", "-i", image, "--json", "Which?", "A cup", "Sure?", "Yes"
    )
    data = outcome.data
    (start, stop), *others = data["visual_spans"]
    assert others == []
    assert data["input_ids"][start:stop] == [processor.image_token_id] * 18
    assert processor.image_token_id not in data["input_ids"][:start] + data["input_ids"][stop:]
    supervised = [label for label in data["labels"] if label != -100]
    assert len(supervised) == data["supervised_tokens"]
    assert processor.tokenizer.decode(supervised) == "A cup<|im_end|>Yes<|im_end|>"
    roles = dict(zip(data["input_ids"], data["roles"], strict=True))
    assert roles[processor.image_token_id] == "user"


def test_prompt_waits_for_an_answer(vistoken):
    data = vistoken("inspect", "prompt", "-m", "pico", "--json", "Which?").data
    assert data["supervised_tokens"] == 0
    assert data["text"].endswith("<|im_start|>assistant\n")


def test_prompt_ids_are_those_of_the_processor(vistoken, image, pico):
    _, processor = pico
    content = [{"type": "image"}, {"type": "text", "text": "Which?"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    from PIL import Image

    inputs = processor(text=text, images=[Image.open(image)], return_tensors="pt")
    data = vistoken("inspect", "prompt", "-m", "pico", "-i", image, "--json", "Which?").data
    assert data["input_ids"] == inputs["input_ids"][0].tolist()


def test_prompt_in_colour(vistoken, image):
    outcome = vistoken("inspect", "prompt", "-m", "pico", "-i", image, "Which?", "A cup")
    assert outcome.code == 0
    assert "<image>x18" in outcome.out
    assert "18 visual in 1 picture," in outcome.out


@pytest.mark.parametrize(
    ("turns", "code", "words"),
    [
        (("",), 3, ["empty"]),
        (("Which <image>?",), 3, ["<image>"]),
        (("Which?", ""), 3, []),
    ],
)
def test_bad_prompts(vistoken, turns, code, words):
    vistoken("inspect", "prompt", "-m", "pico", *turns).failed(code, *words)


def test_full_checkpoint(vistoken, full_checkpoint, pico):
    data = vistoken("inspect", "checkpoint", full_checkpoint, "--json").data
    state = pico[0].state_dict()
    assert data["kind"] == "full"
    assert data["problems"] == []
    assert {t["name"]: t["shape"] for t in data["tensors"]} == {
        name: list(tensor.shape) for name, tensor in state.items()
    }
    assert data["parameters"] == sum(tensor.numel() for tensor in state.values())
    assert data["bytes"] == 4 * data["parameters"]


def test_light_checkpoint(vistoken, tmp_path, pico):
    from vistoken.models.build import references_of
    from vistoken.models.checkpoint import save_light

    save_light(*pico, tmp_path / "light", references_of(load_recipe("pico")))
    outcome = vistoken("inspect", "checkpoint", tmp_path / "light", "--json")
    assert outcome.data["kind"] == "light"
    assert [r["part"] for r in outcome.data["references"]] == [
        "vision_tower.clip",
        "language_model",
    ]
    assert outcome.data["adapter"] is None
    table = vistoken("inspect", "checkpoint", tmp_path / "light")
    assert "patch_projector.linear_1.weight" in table.out


@pytest.mark.parametrize(
    ("config", "files", "kind"),
    [
        (
            {"model_type": "llava_llama", "mm_vision_tower": "x"},
            ["non_lora_trainables.bin", "adapter_model.bin"],
            "official LLaVA or LLaVA-SP release, LoRA",
        ),
        (
            {"model_type": "llava_llama", "mm_vision_tower": "x"},
            ["mm_projector.bin"],
            "official LLaVA or LLaVA-SP release, projector only",
        ),
        (
            {"model_type": "llava_llama", "mm_vision_tower": "x"},
            ["pytorch_model.bin"],
            "official LLaVA or LLaVA-SP release, merged",
        ),
        ({"model_type": "llava"}, ["pytorch_model.bin"], "Hugging Face llava"),
        ({"model_type": "llama"}, ["pytorch_model.bin"], "other (llama)"),
    ],
)
def test_foreign_checkpoints_are_recognised(vistoken, tmp_path, config, files, kind):
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name in files:
        (tmp_path / name).write_bytes(b"never opened")
    data = vistoken("inspect", "checkpoint", tmp_path, "--json").data
    assert data["kind"] == kind
    assert data["pickled_files"] == sorted(files)


def test_damaged_checkpoints_are_named(vistoken, full_checkpoint, tmp_path):
    copy = shutil.copytree(full_checkpoint, tmp_path / "copy")
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (copy / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model.safetensors", "b": "lost.safetensors"}})
    )
    outcome = vistoken("inspect", "checkpoint", copy)
    assert outcome.code == 4
    assert "header says" in outcome.out
    assert "lost.safetensors" in outcome.out
    weights.write_bytes(b"\xff" * 40)
    assert "not safetensors" in vistoken("inspect", "checkpoint", copy).out
    (copy / "config.json").write_text("{")
    assert "config.json cannot be read" in vistoken("inspect", "checkpoint", copy).out


def test_checkpoint_that_is_not_there(vistoken, tmp_path):
    vistoken("inspect", "checkpoint", tmp_path / "gone").failed(4, "gone", "does not exist")


def test_foreign_model_is_not_counted(vistoken, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    vistoken("inspect", "model", tmp_path).failed(4, "llava", "convert")
