"""What training left in nano's weights: vectors of rows and columns, and how far LoRA went."""

from __future__ import annotations

import math
from typing import Any

import nano_language
import torch
from transformers import AutoModelForCausalLM

from vistoken.convert.nano_parts import nano_parts
from vistoken.eval.scoring import bootstrap_mean

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the change in the language model's weights."""


def place_vectors(model: Any) -> dict[str, Any]:
    """How long the vectors of rows and columns are, and whether neighbouring ones are alike."""
    stored = dict(model.model.multi_modal_projector.named_parameters())
    found: dict[str, Any] = {"token_rms": round(float(stored["rms-scale.gain"].detach()), 4)}
    for name in ("rows", "cols"):
        vectors = stored[f"row-col.{name}"].detach().float()
        apart = torch.nn.functional.normalize(vectors - vectors.mean(0), dim=-1)
        found[name] = {
            "rms": round(float(vectors.square().mean().sqrt()), 4),
            "neighbours_cosine": round(float((apart[:-1] * apart[1:]).sum(-1).mean()), 3),
        }
    return found


@torch.inference_mode()
def strengths(model: Any, processor: Any, count: int) -> dict[str, Any]:
    """Perplexity beside the untouched language model's with a part of the change in its weights."""
    base = AutoModelForCausalLM.from_pretrained(nano_parts().language_model, dtype=model.dtype)
    before, now = dict(base.model.named_parameters()), model.model.language_model.named_parameters()
    changed = {
        name: (tensor, before[name], tensor.clone())
        for name, tensor in now
        if "embed" not in name and not torch.equal(tensor, before[name])
    }
    text = nano_language.held_out_text().replace(processor.image_token, "image")
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    size, apart = nano_language.WINDOW, len(ids) // count
    windows = [torch.tensor([ids[n * apart : n * apart + size]]) for n in range(count)]
    losses: dict[float, list[float]] = {}
    for strength in STRENGTHS:
        for tensor, old, new in changed.values():
            tensor.copy_(torch.lerp(old, new, strength))
        losses[strength] = [nano_language._loss(model, window) for window in windows]
    ratios = {}
    for strength, values in losses.items():
        extra = [a - b for a, b in zip(values, losses[0.0], strict=True)]
        mean = bootstrap_mean(extra, range(count))
        ratios[str(strength)] = {
            k: round(math.exp(getattr(mean, k)), 3) for k in ("value", "low", "high")
        }
    drift = [float((new - old).norm() / old.norm()) for _, old, new in changed.values()]
    return {
        "windows": count,
        "window": size,
        "ratio": ratios,
        "change": {
            "matrices": len(drift),
            "least": round(min(drift), 3),
            "most": round(max(drift), 3),
        },
    }
