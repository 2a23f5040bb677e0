from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from vistoken.convert.gguf_llama import GgufLlama, halves_from_pairs
from vistoken.core.errors import WeightsError

gguf = pytest.importorskip("gguf")

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = [("h", "i"), ("1", "2")]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"


def vocabulary() -> list[str]:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [*CONTROL, *letters, *("".join(merge) for merge in MERGES)]


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary()),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    return model


def paired(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorder rows as GGUF files have them: the two members of a rotary pair side by side."""
    width = len(weight) // heads
    order = [
        head * width + half * width // 2 + i
        for head in range(heads)
        for i in range(width // 2)
        for half in (0, 1)
    ]
    return weight[order]


def write_gguf(path: Path, model: LlamaForCausalLM, *, arch: str = "llama", skip: str = "") -> None:
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "model.layers.": "blk.",
    }
    config, writer = model.config, gguf.GGUFWriter(path, arch)
    writer.add_vocab_size(config.vocab_size)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(5000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    tokens = vocabulary()
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in CONTROL else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in MERGES])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    for name, tensor in model.state_dict().items():
        for house, other in names.items():
            name = name.replace(house, other)
        if name in ("lm_head.weight", skip):
            continue
        values = tensor.float().numpy()
        if "attn_q" in name:
            values = paired(values, config.num_attention_heads)
        elif "attn_k" in name:
            values = paired(values, config.num_key_value_heads)
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def release(tmp_path: Path) -> GgufLlama:
    write_gguf(tmp_path / "tiny.gguf", tiny_llama())
    return GgufLlama(tmp_path / "tiny.gguf")


def test_model_is_the_one_that_was_written(release: GgufLlama, tmp_path: Path) -> None:
    original = tiny_llama()
    converted = release.model()
    converted.save_pretrained(tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert again.dtype == torch.bfloat16
    assert again.config.rms_norm_eps == 1e-5
    ids = torch.arange(10)[None]
    expected = original(ids).logits
    assert torch.equal(converted(ids).logits, expected)
    assert torch.equal(again(ids).logits, expected)


def test_tokenizer_splits_digits_and_survives_saving(release: GgufLlama, tmp_path: Path) -> None:
    release.config().save_pretrained(tmp_path / "out")
    release.tokenizer().save_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.tokenize("hi 12") == ["hi", "Ġ", "1", "2"]
    text = "Größe 北京 hi<|im_end|>"
    ids = tokenizer(text).input_ids
    assert ids[-1] == tokenizer.eos_token_id == 2
    assert tokenizer.decode(ids) == text
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == "<|im_start|>hi<|im_end|>"


def test_rotary_halves_undo_pairs() -> None:
    weight = np.arange(48, dtype=np.float32).reshape(16, 3)
    restored = halves_from_pairs(torch.from_numpy(paired(weight, heads=2)), heads=2)
    assert torch.equal(restored, torch.from_numpy(weight))


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_llama(), skip="blk.1.ffn_up.weight")
    with pytest.raises(WeightsError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        GgufLlama(tmp_path / "tiny.gguf").model()


def test_other_architecture_and_other_files_are_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "other.gguf", tiny_llama(), arch="falcon")
    with pytest.raises(WeightsError, match=r"other\.gguf is not a Llama"):
        GgufLlama(tmp_path / "other.gguf")
    (tmp_path / "text.gguf").write_text("not a model, but long enough to look at")
    with pytest.raises(WeightsError, match=r"text\.gguf is not a readable GGUF file"):
        GgufLlama(tmp_path / "text.gguf")
