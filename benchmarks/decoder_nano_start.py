"""A reader for `decoder_nano.py` that knows what visual tokens are: nano's language model."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from vistoken.api import load
from vistoken.convert.nano_parts import nano_parts


def nano_reader(folder: Path) -> Path:
    """Write nano's language model, adapters merged, as a folder of transformers, once.

    The row of the image token is left out: building a model adds its own.

    Args:
        folder: The folder to write.

    Returns:
        The folder.
    """
    if (folder / "config.json").is_file():
        return folder
    model, _ = load("nano", dtype=torch.float32)
    source = nano_parts().language_model
    config = LlamaConfig.from_pretrained(source)
    plain = LlamaForCausalLM(config)
    state = model.model.language_model.state_dict()
    words = state["embed_tokens.weight"][: config.vocab_size]
    plain.model.load_state_dict({**state, "embed_tokens.weight": words})
    plain.tie_weights()
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    plain.save_pretrained(folder)
    return folder
