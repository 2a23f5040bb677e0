"""A miniature InternVL2 release becomes a checkpoint that answers; what cannot be read says why."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoTokenizer

import vistoken
from vistoken.convert.tokenizers import read_tokenizer
from vistoken.convert.whole_release import convert_whole_release
from vistoken.core.errors import UsageError, WeightsError
from vistoken.core.tables import TOKEN
from vistoken.models.processing import VistokenProcessor

TOKENIZER = Path(__file__).parents[1] / "golden" / "llava-sp" / "release_pooling" / "tiny-vicuna"
MARKS = ("<|im_end|>", "<|im_start|>", "<img>", "</img>", "<IMG_CONTEXT>")
WIDTH, TEXT, HEADS, SHARED, LAYERS, INNER = 16, 24, 4, 2, 2, 32


def pieces():
    return sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZER / "tokenizer.model"))


VOCABULARY = pieces().get_piece_size() + len(MARKS)


def released_shapes():
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
        "language_model.model.tok_embeddings.weight": (VOCABULARY, TEXT),
        "language_model.model.norm.weight": (TEXT,),
        "language_model.output.weight": (VOCABULARY, TEXT),
    }
    for number in range(LAYERS):
        tower = {
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
        text = {
            "attention.wqkv.weight": ((HEADS + 2 * SHARED) * TEXT // HEADS, TEXT),
            "attention.wo.weight": (TEXT, TEXT),
            "feed_forward.w1.weight": (INNER, TEXT),
            "feed_forward.w3.weight": (INNER, TEXT),
            "feed_forward.w2.weight": (TEXT, INNER),
            "attention_norm.weight": (TEXT,),
            "ffn_norm.weight": (TEXT,),
        }
        shapes |= {f"vision_model.encoder.layers.{number}.{n}": s for n, s in tower.items()}
        shapes |= {f"language_model.model.layers.{number}.{n}": s for n, s in text.items()}
    return shapes


def released_config():
    return {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "downsample_ratio": 0.5,
        "force_image_size": 56,
        "max_dynamic_patch": 6,
        "min_dynamic_patch": 1,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internlm2-chat",
        "use_thumbnail": True,
        "llm_config": {
            "architectures": ["InternLM2ForCausalLM"],
            "bias": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": TEXT,
            "intermediate_size": INNER,
            "max_position_embeddings": 4096,
            "num_attention_heads": HEADS,
            "num_hidden_layers": LAYERS,
            "num_key_value_heads": SHARED,
            "rms_norm_eps": 1e-5,
            "rope_scaling": {"factor": 2.0, "type": "dynamic"},
            "rope_theta": 1000000,
            "tie_word_embeddings": False,
            "vocab_size": VOCABULARY,
        },
        "vision_config": {
            "hidden_act": "gelu",
            "hidden_size": WIDTH,
            "image_size": 56,
            "intermediate_size": 2 * WIDTH,
            "layer_norm_eps": 1e-6,
            "norm_type": "layer_norm",
            "num_attention_heads": 2,
            "num_hidden_layers": LAYERS,
            "patch_size": 14,
            "qk_normalization": False,
            "qkv_bias": True,
        },
    }


def write(folder, drop=(), add=None, **config):
    """A release's folder, as fetched: weights, configs, sentencepiece model, added tokens."""
    folder.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(2)
    shapes = {name: s for name, s in (released_shapes() | (add or {})).items() if name not in drop}
    tensors = {name: 0.3 * torch.randn(s, generator=generator) for name, s in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    values = released_config()
    for name, value in config.items():
        inner = name.split("__")
        (values[inner[0]] if len(inner) > 1 else values)[inner[-1]] = value
    (folder / "config.json").write_text(json.dumps(values))
    shutil.copyfile(TOKENIZER / "tokenizer.model", folder / "tokenizer.model")
    first = VOCABULARY - len(MARKS)
    listed = {mark: first + number for number, mark in enumerate(MARKS)}
    (folder / "added_tokens.json").write_text(json.dumps(listed))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    (folder / "special_tokens_map.json").write_text(
        json.dumps(special | {"additional_special_tokens": list(MARKS)})
    )
    own = {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]}
    plain = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    tokens = {"<unk>": 0, "<s>": 1, "</s>": 2} | listed
    settings = {
        "tokenizer_class": "InternLM2Tokenizer",
        "auto_map": own,
        "add_bos_token": True,
        "added_tokens_decoder": {
            str(number): {"content": token, "special": True, **plain}
            for token, number in tokens.items()
        },
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(special | settings))
    return tensors


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("internvl")
    tensors = write(folder / "release")
    report = convert_whole_release("mini-monkey", folder / "release", folder / "out")
    return tensors, report, folder / "out"


def test_every_tensor_finds_its_place(converted):
    tensors, report, out = converted
    assert report.written
    assert {row.key for row in report.rows} == set(tensors)
    counts = {"vision tower": 32, "connector": 6, "language model": 17}
    assert report.counts == counts
    model, _ = vistoken.load(out, device="cpu", dtype="float32")
    own = model.state_dict()
    assert {name for row in report.rows for name in row.target.split(", ")} == set(own)
    embedded = own["model.language_model.embed_tokens.weight"]
    assert torch.equal(embedded[:-1], tensors["language_model.model.tok_embeddings.weight"])
    assert torch.equal(embedded[-1], torch.zeros(TEXT))
    packed = tensors["vision_model.encoder.layers.1.attn.qkv.weight"]
    keys = own["model.vision_tower.encoder.layer.1.attention.k_proj.weight"]
    assert torch.equal(keys, packed[WIDTH : 2 * WIDTH])


def reference_connector(tensors, features):
    """InternVL2's pixel shuffle (v2) and ``mlp1`` by plain operations on (N, 4, 4, width)."""
    cells = features.view(-1, 2, 2, 2, 2, WIDTH).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 4 * WIDTH)
    mlp = {name.removeprefix("mlp1."): t for name, t in tensors.items() if name[:4] == "mlp1"}
    hidden = F.layer_norm(cells, (4 * WIDTH,), mlp["0.weight"], mlp["0.bias"])
    hidden = F.gelu(F.linear(hidden, mlp["1.weight"], mlp["1.bias"]))
    return F.linear(hidden, mlp["3.weight"], mlp["3.bias"])


def test_it_sees_and_answers(converted):
    tensors, _, out = converted
    model, processor = vistoken.load(out, device="cpu", dtype="float32")
    picture = Image.effect_noise((120, 60), 80).convert("RGB")
    question = {
        "role": "user",
        "content": [{"type": "image", "image": picture}, {"type": "text", "text": "a b"}],
    }
    inputs = processor.apply_chat_template(
        [question], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    views = inputs["pixel_values"]
    with torch.no_grad():
        features = model.model.vision_tower(views).last_hidden_state[:, 1:]
        wanted = reference_connector(tensors, features.unflatten(1, (4, 4))).flatten(0, 1)
        seen = model.get_image_features(
            pixel_values=views, view_table=inputs["view_table"]
        ).pooler_output[0]
        answer = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    torch.testing.assert_close(seen, wanted, rtol=1e-4, atol=1e-4)
    assert answer.shape[1] > inputs["input_ids"].shape[1]
    vocabulary = processor.tokenizer.get_vocab()
    ids = inputs["input_ids"][0].tolist()
    start, stop = ids.index(vocabulary["<img>"]), ids.index(vocabulary["</img>"])
    assert ids[start + 1 : stop] == [processor.image_token_id] * len(wanted)
    assert vocabulary["<|im_end|>"] in model.generation_config.eos_token_id


def test_the_variant_decides_the_tilings(tmp_path, converted):
    write(tmp_path / "release")
    source = tmp_path / "release"
    report = convert_whole_release("mini-monkey", source, tmp_path / "a", variant="internvl2")
    assert report.kind == "internvl2"
    for folder, groups in ((tmp_path / "a", {0, 1}), (converted[2], {0, 1, 2})):
        pipeline = VistokenProcessor.from_pretrained(folder).image_processor
        table = pipeline.token_map(60, 120)
        assert set(TOKEN.get(table, "group").tolist()) == groups
    with pytest.raises(UsageError, match="unknown variant 'monkey'"):
        convert_whole_release("mini-monkey", source, tmp_path / "b", variant="monkey")
    with pytest.raises(UsageError, match="'llava-uhd' reads no whole releases"):
        convert_whole_release("llava-uhd", source, tmp_path / "b")


@pytest.mark.parametrize("text", ["a b", "<|im_start|>user\n<img></img>\na<|im_end|>", " a"])
def test_tokens_are_those_of_sentencepiece(converted, text, tmp_path):
    write(tmp_path / "release")
    for tokenizer in (
        read_tokenizer(tmp_path / "release"),
        AutoTokenizer.from_pretrained(converted[2]),
    ):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == 1
        first = VOCABULARY - len(MARKS)
        wanted, rest = [], text
        while rest:
            places = [(rest.find(mark), mark) for mark in MARKS if mark in rest]
            place, mark = min(places) if places else (len(rest), "")
            wanted += pieces().encode(rest[:place])
            wanted += [first + MARKS.index(mark)] if mark else []
            rest = rest[place + len(mark) :]
        assert ids[1:] == wanted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drop": ["mlp1.1.bias"]}, r"linear_1\.bias is missing"),
        ({"drop": ["language_model.model.layers.1.attention.wqkv.weight"]}, "_proj.weight is miss"),
        ({"add": {"mlp2.0.weight": (3,)}}, r"mlp2\.0\.weight has no place"),
        (
            {"add": {"vision_model.encoder.layers.0.attn.q_norm.weight": (4,)}},
            r"q_norm\.weight is no tensor of an InternViT-300M",
        ),
        (
            {"add": {"language_model.model.layers.0.attention.wq.weight": (4, 4)}},
            r"wq\.weight is no tensor of an InternLM2",
        ),
        ({"add": {"mlp1.3.weight": (TEXT, 3)}}, r"linear_2\.weight is \(24, 3\) where \(24, 24\)"),
        (
            {"llm_config__architectures": ["Qwen2ForCausalLM"]},
            r"config\.json names Qwen2ForCausalLM; only releases on InternLM2",
        ),
        ({"ps_version": "v1"}, "has ps_version 'v1', where 'v2'"),
        ({"select_layer": -4}, "has select_layer -4, where -1"),
        ({"template": "Hermes-2"}, "has template 'Hermes-2', where 'internlm2-chat'"),
        ({"llm_config__bias": True}, "has bias True, where False"),
        ({"vision_config": {"hidden_size": 3}}, "has no num_hidden_layers in vision_config"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path, changes, message):
    write(tmp_path / "release", **changes)
    with pytest.raises(WeightsError, match=message):
        convert_whole_release("mini-monkey", tmp_path / "release", tmp_path / "out", dry_run=True)
    assert not (tmp_path / "out").exists()


def test_files(tmp_path):
    source, out = tmp_path / "release", tmp_path / "out"
    source.mkdir()
    with pytest.raises(WeightsError, match=r"has no config\.json"):
        convert_whole_release("mini-monkey", source, out)
    write(source)
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(WeightsError, match="fetch"):
        convert_whole_release("mini-monkey", source, out)
    weights.unlink()
    with pytest.raises(WeightsError, match="holds no weights"):
        convert_whole_release("mini-monkey", source, out)
