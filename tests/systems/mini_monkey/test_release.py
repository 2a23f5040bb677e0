"""InternVL2 releases: every tensor finds its place, and what cannot be read says why."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from vistoken.core.errors import WeightsError
from vistoken.core.registry import load_part
from vistoken.models.modeling import VistokenForConditionalGeneration
from vistoken.models.recipe import load_recipe, parse_recipe
from vistoken.systems.mini_monkey.internlm2 import split_wqkv
from vistoken.systems.mini_monkey.release_keys import MiniMonkeyKeys, read_release

WIDTH, TEXT, HEADS, SHARED = 16, 24, 4, 2


def released_shapes(layers=2):
    shapes = {
        "vision_model.embeddings.class_embedding": (1, 1, WIDTH),
        "vision_model.embeddings.position_embedding": (1, 17, WIDTH),
        "vision_model.embeddings.patch_embedding.weight": (WIDTH, 3, 14, 14),
        "vision_model.embeddings.patch_embedding.bias": (WIDTH,),
        "mlp1.0.weight": (4 * WIDTH,),
        "mlp1.0.bias": (4 * WIDTH,),
        "mlp1.1.weight": (TEXT, 4 * WIDTH),
        "mlp1.1.bias": (TEXT,),
        "mlp1.3.weight": (TEXT, TEXT),
        "mlp1.3.bias": (TEXT,),
        "language_model.model.tok_embeddings.weight": (40, TEXT),
        "language_model.model.norm.weight": (TEXT,),
        "language_model.output.weight": (40, TEXT),
    }
    for number in range(layers):
        tower = f"vision_model.encoder.layers.{number}."
        sizes = {
            "attn.qkv.weight": (3 * WIDTH, WIDTH),
            "attn.qkv.bias": (3 * WIDTH,),
            "attn.proj.weight": (WIDTH, WIDTH),
            "attn.proj.bias": (WIDTH,),
            "norm1.weight": (WIDTH,),
            "norm1.bias": (WIDTH,),
            "norm2.weight": (WIDTH,),
            "norm2.bias": (WIDTH,),
            "ls1": (WIDTH,),
            "ls2": (WIDTH,),
            "mlp.fc1.weight": (2 * WIDTH, WIDTH),
            "mlp.fc1.bias": (2 * WIDTH,),
            "mlp.fc2.weight": (WIDTH, 2 * WIDTH),
            "mlp.fc2.bias": (WIDTH,),
        }
        shapes |= {tower + name: size for name, size in sizes.items()}
        text = f"language_model.model.layers.{number}."
        head = TEXT // HEADS
        sizes = {
            "attention.wqkv.weight": ((HEADS + 2 * SHARED) * head, TEXT),
            "attention.wo.weight": (TEXT, TEXT),
            "feed_forward.w1.weight": (32, TEXT),
            "feed_forward.w3.weight": (32, TEXT),
            "feed_forward.w2.weight": (TEXT, 32),
            "attention_norm.weight": (TEXT,),
            "ffn_norm.weight": (TEXT,),
        }
        shapes |= {text + name: size for name, size in sizes.items()}
    return shapes


def write(folder, drop=(), add=None, config=None):
    generator = torch.Generator().manual_seed(2)
    shapes = {**released_shapes(), **(add or {})}
    tensors = {
        name: torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
        if name not in drop
    }
    save_file(tensors, folder / "model.safetensors")
    text = {
        "architectures": ["InternLM2ForCausalLM"],
        "num_attention_heads": HEADS,
        "num_key_value_heads": SHARED,
    }
    values = {"llm_config": text, "select_layer": -1, "ps_version": "v2", **(config or {})}
    (folder / "config.json").write_text(json.dumps(values))
    return tensors


def small_model():
    values = load_recipe("mini-monkey-2b").model_dump(exclude_none=True)
    values["towers"][0]["config"] |= {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": [56, 56],
    }
    values["towers"][0]["size"] = [56, 56]
    values["language_model"]["config"] |= {
        "hidden_size": TEXT,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "num_key_value_heads": SHARED,
        "vocab_size": 40,
    }
    recipe = parse_recipe(values, "small")
    return VistokenForConditionalGeneration(recipe.model_config_for()).eval()


def test_a_whole_release_fills_the_model(tmp_path):
    tensors = write(tmp_path)
    model = small_model()
    state = read_release(
        tmp_path,
        "pixel-shuffle." if any(".pixel-shuffle." in name for name in model.state_dict()) else "",
    )
    own = model.state_dict()
    assert set(state) == set(own)
    for name, tensor in state.items():
        rows = own[name].shape[0] - tensor.shape[0]  # the image token's, in the vocabulary
        assert rows == (1 if tensor.shape[0] == 40 else 0), name
        assert own[name].shape[1:] == tensor.shape[1:]
    padded = {n: t if t.shape == own[n].shape else F.pad(t, (0, 0, 0, 1)) for n, t in state.items()}
    model.load_state_dict(padded)
    tower = model.model.vision_tower
    assert torch.equal(
        tower.encoder.layer[1].attention.k_proj.weight,
        tensors["vision_model.encoder.layers.1.attn.qkv.weight"][WIDTH : 2 * WIDTH],
    )
    with torch.no_grad():
        hidden = tower(pixel_values=torch.randn(1, 3, 56, 56)).last_hidden_state
    assert hidden.shape == (1, 17, WIDTH)


def test_packed_projection_by_hand():
    head, rows = 3, []
    for group in range(2):
        rows += [("q", 2 * group)] * head + [("q", 2 * group + 1)] * head
        rows += [("k", group)] * head + [("v", group)] * head
    code = {"q": 0.0, "k": 100.0, "v": 200.0}
    packed = torch.tensor([[code[kind] + number] for kind, number in rows])
    q, k, v = split_wqkv(packed, 4, 2)
    assert q.flatten().tolist() == [h for h in range(4) for _ in range(head)]
    assert k.flatten().tolist() == [100.0] * head + [101.0] * head
    assert v.flatten().tolist() == [200.0] * head + [201.0] * head
    with pytest.raises(WeightsError, match="a wqkv of 25 rows is not made of 4 query heads"):
        split_wqkv(torch.zeros(25, 1), 4, 2)


def test_connector_names_are_registered():
    importer = load_part("importer", "mini-monkey")
    assert importer is MiniMonkeyKeys
    shapes = released_shapes()
    tensors = {n: torch.empty(s) for n, s in shapes.items() if n.startswith("mlp1.")}
    assert importer.recognises(tensors)
    assert not importer.recognises(shapes)
    assert importer.options(tensors, (4, 4)) == {"factor": 2, "hidden_width": TEXT}
    names = importer.official_names(
        dict.fromkeys(
            [f"{m}.{k}" for m in ("norm", "linear_1", "linear_2") for k in ("weight", "bias")]
        )
    )
    assert set(names.values()) == set(tensors)
    del tensors["mlp1.3.bias"]
    with pytest.raises(WeightsError, match=r"mlp1\.3\.bias is missing"):
        importer.options(tensors, (4, 4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drop": ["mlp1.1.bias"]}, r"mlp1\.1\.bias is missing"),
        ({"add": {"mlp2.0.weight": (3,)}}, r"mlp2\.0\.weight has no place"),
        (
            {"add": {"vision_model.encoder.layers.0.attn.q_norm.weight": (4,)}},
            r"q_norm\.weight is no tensor of an InternViT-300M",
        ),
        (
            {"add": {"language_model.model.layers.0.attention.wq.weight": (4, 4)}},
            r"wq\.weight is no tensor of an InternLM2",
        ),
        (
            {"config": {"llm_config": {"architectures": ["Qwen2ForCausalLM"]}}},
            r"config\.json names Qwen2ForCausalLM; only releases on InternLM2",
        ),
        ({"config": {"ps_version": "v1"}}, "has ps_version 'v1', where 'v2'"),
        ({"config": {"select_layer": -4}}, "has select_layer -4, where -1"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path, changes, message):
    write(tmp_path, **changes)
    with pytest.raises(WeightsError, match=message):
        read_release(tmp_path)


def test_files(tmp_path):
    with pytest.raises(WeightsError, match=r"has no config\.json"):
        read_release(tmp_path)
    write(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(WeightsError, match="is damaged"):
        read_release(tmp_path)
    weights.unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(WeightsError, match=r"only pytorch_model\.bin, a pickle, which is never"):
        read_release(tmp_path)
