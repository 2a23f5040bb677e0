"""A Llama-shaped language model and its tokenizer from a GGUF file, as plain Hugging Face files.

`transformers` can read GGUF too, but what it returns counts as quantised and refuses to be saved;
here the few lines that matter stand alone and every tensor is accounted for.

Source: ggml-org/llama.cpp:convert_hf_to_gguf.py (tensor names, the permutation of query and key).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from vistoken.core.errors import MachineError, WeightsError

CONTROL_TOKEN = 3
BYTE_BPE = ("gpt2", "smollm")

_OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def import_gguf() -> Any:
    """Import the optional package `gguf`.

    Raises:
        MachineError: If it is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise MachineError(
            "converting the language model needs the package gguf; install it with"
            " python -m pip install gguf"
        ) from error
    return gguf


class GgufLlama:
    """One opened GGUF file of a Llama with tied embeddings and a byte-pair tokenizer."""

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            MachineError: If `gguf` is not installed.
            WeightsError: If the file is unreadable or of another architecture.
        """
        self._gguf = import_gguf()
        try:
            self._reader = self._gguf.GGUFReader(path)
        except (ValueError, OSError, IndexError) as error:
            raise WeightsError(f"{path} is not a readable GGUF file; fetch it again") from error
        self._path = path
        if self._field("general.architecture") != "llama":
            raise WeightsError(f"{path} is not a Llama; name a GGUF file of that architecture")
        kind = (self._field("tokenizer.ggml.model"), self._field("tokenizer.ggml.pre"))
        if kind != BYTE_BPE:
            raise WeightsError(f"{path} has the tokenizer {kind}; only {BYTE_BPE} can be converted")

    def config(self) -> LlamaConfig:
        """Return the model's configuration."""
        return LlamaConfig(
            vocab_size=self._field("llama.vocab_size"),
            hidden_size=self._field("llama.embedding_length"),
            intermediate_size=self._field("llama.feed_forward_length"),
            num_hidden_layers=self._field("llama.block_count"),
            num_attention_heads=self._field("llama.attention.head_count"),
            num_key_value_heads=self._field("llama.attention.head_count_kv"),
            max_position_embeddings=self._field("llama.context_length"),
            # stored as float32, so 1e-5 comes back with a tail of digits
            rms_norm_eps=float(f"{self._field('llama.attention.layer_norm_rms_epsilon'):.6g}"),
            rope_parameters={
                "rope_type": "default",
                "rope_theta": self._field("llama.rope.freq_base"),
            },
            bos_token_id=self._field("tokenizer.ggml.bos_token_id"),
            eos_token_id=self._field("tokenizer.ggml.eos_token_id"),
            pad_token_id=self._field("tokenizer.ggml.padding_token_id"),
            tie_word_embeddings=True,
            dtype=torch.bfloat16,
        )

    def model(self) -> LlamaForCausalLM:
        """Return the model in bfloat16, dequantised, every tensor of the file used once.

        Raises:
            WeightsError: If a tensor is unknown, missing or of another shape.
        """
        config = self.config()
        model = LlamaForCausalLM(config)
        tensors = {
            _house_name(item.name): self._dequantised(item, config) for item in self._reader.tensors
        }
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        try:
            # assigned, since casting the whole model would round the rotary frequencies too
            model.load_state_dict(tensors, assign=True)
        except RuntimeError as error:
            raise WeightsError(
                f"{self._path} does not hold the model it describes: {error}"
            ) from error
        model.tie_weights()
        model.generation_config = GenerationConfig(
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
        )
        return model.eval()

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Return the tokenizer with its chat template."""
        texts: list[str] = self._field("tokenizer.ggml.tokens")
        kinds: list[int] = self._field("tokenizer.ggml.token_type")
        merges = [tuple(merge.split(" ")) for merge in self._field("tokenizer.ggml.merges")]
        vocabulary = {text: index for index, text in enumerate(texts)}
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        control = [text for text, kind in zip(texts, kinds, strict=True) if kind == CONTROL_TOKEN]
        tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in control])
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token=texts[self._field("tokenizer.ggml.bos_token_id")],
            eos_token=texts[self._field("tokenizer.ggml.eos_token_id")],
            unk_token=texts[self._field("tokenizer.ggml.unknown_token_id")],
            pad_token=texts[self._field("tokenizer.ggml.padding_token_id")],
            model_max_length=self._field("llama.context_length"),
            chat_template=self._field("tokenizer.chat_template"),
            clean_up_tokenization_spaces=False,
        )

    def _field(self, key: str) -> Any:
        field = self._reader.get_field(key)
        if field is None:
            raise WeightsError(f"{self._path} has no field {key!r}; fetch the file again")
        return field.contents()

    def _dequantised(self, item: Any, config: LlamaConfig) -> Tensor:
        """Return one tensor in bfloat16 with rotary pairs as `transformers` lays them out."""
        values = torch.from_numpy(self._gguf.quants.dequantize(item.data, item.tensor_type).copy())
        if ".attn_q." in item.name:
            values = halves_from_pairs(values, config.num_attention_heads)
        elif ".attn_k." in item.name:
            values = halves_from_pairs(
                values, config.num_key_value_heads or config.num_attention_heads
            )
        return values.to(torch.bfloat16)


def halves_from_pairs(weight: Tensor, heads: int) -> Tensor:
    """Reorder a query or key projection from neighbouring rotary pairs to two halves.

    Args:
        weight: `[heads * width, in]`, the rows of each head as x0, y0, x1, y1, ...
        heads: Number of heads.

    Returns:
        The same rows, each head as x0, x1, ..., y0, y1, ...
    """
    pairs = weight.unflatten(0, (heads, -1, 2))
    return pairs.transpose(1, 2).flatten(0, 2)


def _house_name(name: str) -> str:
    if name in _OUTER:
        return _OUTER[name]
    prefix, number, module, tensor = (*name.split("."), "", "", "")[:4]
    if prefix != "blk" or module not in _LAYER:
        raise WeightsError(
            f"GGUF tensor {name!r} has no place in a Llama; the file is another model"
        )
    return f"model.layers.{number}.{_LAYER[module]}.{tensor}"
