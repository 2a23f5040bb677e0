"""What training on pictures left of the language model: perplexity, and free answers that end."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from paired import sha256
from transformers import AutoModelForCausalLM, AutoTokenizer

from vistoken.convert.nano_parts import nano_parts
from vistoken.eval.scoring import bootstrap_mean

ROOT = Path(__file__).parent.parent
WINDOW = 512
LONGEST = 64
"""Tokens of a free answer."""

CHAT = (
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "Give me three ideas for a birthday present.",
    "Explain in two sentences why the sky is blue.",
    "Tell me a story about a fox and a crow.",
    "What can I cook with potatoes and eggs?",
    "How do I learn to ride a bicycle?",
    "List five animals that live in the sea.",
    "What is the difference between a lake and a river?",
    "Write a polite message to a neighbour about loud music.",
    "Why do leaves fall in autumn?",
    "Name two planets and say one thing about each.",
    "How many days are there in a week?",
    "Translate the word 'house' into Spanish.",
    "What should I pack for a weekend in the mountains?",
    "Describe your favourite season.",
    "Who wrote Romeo and Juliet?",
    "Give me a tip for sleeping better.",
    "What does a baker do?",
    "Say hello in one sentence.",
)


def held_out_text() -> str:
    """The prose of this repository's pages: own words, which no part of nano was trained on."""
    parts = []
    for path in sorted((ROOT / "docs").rglob("*.md")):
        text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        lines = [line for line in text.splitlines() if not line.startswith(("|", "<!--"))]
        parts.append("\n".join(lines).strip())
    return "\n\n".join(parts)


@torch.inference_mode()
def perplexity(model: Any, processor: Any, tokens: int) -> dict[str, Any]:
    """Perplexity on held-out text, window by window, of nano and the untouched language model."""
    folder = nano_parts().language_model
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype).eval()
    # the pages speak of the placeholder, which the tokenizer would read as one without a picture
    text = held_out_text().replace(processor.image_token, "image")
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"][:tokens]
    windows = [ids[start : start + WINDOW] for start in range(0, len(ids) - WINDOW + 1, WINDOW)]
    losses: dict[str, list[float]] = {"nano": [], "base": []}
    for window in windows:
        for name, one in (("nano", model), ("base", base)):
            losses[name].append(_loss(one, torch.tensor([window])))
    extra = [a - b for a, b in zip(losses["nano"], losses["base"], strict=True)]
    ratio = bootstrap_mean(extra, range(len(extra)))
    return {
        "text": "prose of docs/**/*.md",
        "tokens": len(windows) * WINDOW,
        "window": WINDOW,
        "perplexity": {n: round(math.exp(sum(v) / len(v)), 3) for n, v in losses.items()},
        "ratio": {k: round(math.exp(getattr(ratio, k)), 4) for k in ("value", "low", "high")},
        "goal": "at most 1.05",
        "digests": {
            str(path.relative_to(ROOT)): sha256(path)
            for path in sorted((ROOT / "docs").rglob("*.md"))
        },
    }


def _loss(model: Any, ids: torch.Tensor) -> float:
    """Mean negative log-likelihood of a window's tokens after the first."""
    logits = model(input_ids=ids).logits[0, :-1].float()
    return float(torch.nn.functional.cross_entropy(logits, ids[0, 1:]))


@torch.inference_mode()
def plain_chat(model: Any, processor: Any) -> dict[str, Any]:
    """Free answers without a picture, of nano and of the untouched language model."""
    folder = nano_parts().language_model
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype).eval()
    own = AutoTokenizer.from_pretrained(folder)
    render = {"template": processor.chat_template}
    return {
        "nano": free_answers(CHAT, _write(model, processor.tokenizer, render["template"])),
        "base": free_answers(CHAT, _write(base, own, own.chat_template)),
    }


def _write(model: Any, tokenizer: Any, template: str) -> list[list[int]]:
    """Greedy answers to all plain questions in one batch, as tokens up to the end token."""
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            chat_template=template,
            tokenize=False,
            add_generation_prompt=True,
        )
        for question in CHAT
    ]
    inputs = tokenizer(
        texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
    )
    written = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        do_sample=False,
        max_new_tokens=LONGEST,
        pad_token_id=tokenizer.pad_token_id,
    )
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    rows = written[:, inputs["input_ids"].shape[1] :].tolist()
    return [row[: row.index(end)] if end in row else row for row in rows]


def free_answers(
    questions: Sequence[str], answers: Sequence[list[int]], tokenizer: Any = None
) -> dict[str, Any]:
    """How many answers never end or go round in circles, and all of them."""
    tokenizer = tokenizer or AutoTokenizer.from_pretrained(nano_parts().language_model)
    texts = [tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in answers]
    at_limit = [len(answer) >= LONGEST - 1 for answer in answers]
    loops = [goes_round(text) for text in texts]
    return {
        "n": len(texts),
        "longest": LONGEST,
        "at_limit": sum(at_limit),
        "loops": sum(loops),
        "empty": sum(not text for text in texts),
        "answers": [
            {"question": q, "answer": t, "at_limit": a, "loops": r}
            for q, t, a, r in zip(questions, texts, at_limit, loops, strict=True)
        ],
    }


def goes_round(text: str, longest: int = 16) -> bool:
    """Whether some words come three times in direct succession (six times, if it is one word)."""
    words = text.casefold().split()
    for size in range(1, longest + 1):
        times = max(3, math.ceil(6 / size))
        for start in range(len(words) - times * size + 1):
            first = words[start : start + size]
            if all(words[start + k * size : start + (k + 1) * size] == first for k in range(times)):
                return True
    return False
