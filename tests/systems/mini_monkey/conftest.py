"""Small language models and prompts with two tilings."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from vistoken.core.tables import TOKEN, TokenKind
from vistoken.models.decoder import MechanismContext, MechanismStack, run_decoder
from vistoken.systems.mini_monkey.config import ScmConfig
from vistoken.systems.mini_monkey.scm import Scm

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def causal(family="llama", attention="sdpa", **changes):
    classes = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}
    config_class, model_class = classes[family]
    with torch.random.fork_rng():
        torch.manual_seed(11)
        config = config_class(**{**SIZES, **changes}, attn_implementation=attention)
        return model_class(config).eval()


def picture(media, detailed, adaptive=3, whole=2):
    """TokenMap of one picture: its detailed, adaptive and undivided tokens."""
    return torch.cat(
        [
            TOKEN.make(count, kind=TokenKind.VISUAL, media=media, group=group)
            for group, count in ((1, detailed), (2, adaptive), (0, whole))
        ]
    )


def prompt(*detailed, before=2, after=4, first_media=0):
    """TokenMap (n, K) of a prompt: text, pictures with text between, text."""
    pieces = [TOKEN.make(before)]
    for number, count in enumerate(detailed):
        pieces += [picture(first_media + number, count), TOKEN.make(1)]
    return torch.cat([*pieces, TOKEN.make(after - 1)])


def stack_of(model, **options):
    return MechanismStack([Scm(ScmConfig(**options), MechanismContext(model.config, 0))])


def padded(tables, width=None, side="left"):
    """Batch of token maps and its mask."""
    length = max(len(table) for table in tables)
    rows, masks = [], []
    for table in tables:
        fill = TOKEN.make(length - len(table), kind=TokenKind.PAD)
        mask = torch.cat([torch.zeros(len(fill)), torch.ones(len(table))]).long()
        rows.append(torch.cat([fill, table] if side == "left" else [table, fill]))
        masks.append(mask if side == "left" else mask.flip(0))
    return torch.stack(rows), torch.stack(masks)


@pytest.fixture(scope="session")
def scm():
    """The helpers of this file."""

    class Kit:
        causal = staticmethod(causal)
        prompt = staticmethod(prompt)
        stack = staticmethod(stack_of)
        padded = staticmethod(padded)

        @staticmethod
        @torch.no_grad()
        def run(model, table, hidden, **options):
            inputs = {
                name: options.pop(name)
                for name in ("attention_mask", "position_ids", "past_key_values", "use_cache")
                if name in options
            }
            table = table if table is None or table.dim() == 3 else table[None]
            return run_decoder(
                model.model,
                stack=stack_of(model, **options),
                inputs_embeds=hidden,
                token_map=table,
                **inputs,
            )

    return Kit
