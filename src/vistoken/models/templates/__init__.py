"""Frozen chat templates, by name.

Each template is one jinja file that `apply_chat_template` of transformers renders as it stands;
a checkpoint stores its text. Conventions all of them share:

- The tokenizer adds the beginning-of-sequence token; no template opens with it.
- A picture is the mark `<image>`; the pictures of a message come first, in order, each followed by
  a newline where something follows.
- A `{% generation %}` block holds what is supervised: the answer, the space before it where the
  template has one, and the terminator.
- An empty last answer leaves the turn open, without a terminator.
"""

from __future__ import annotations

import json
import re
from functools import cache
from importlib import resources

from vistoken.core.errors import UsageError, did_you_mean

IMAGE_MARK = "<image>"
"""What every frozen template writes for a picture."""

_NAMES = (
    "chatml",
    "gemma",
    "internvl",
    "llama-2",
    "llama-3",
    "mistral",
    "phi",
    "plain",
    "vicuna-v1",
)

_LANGUAGE_AND_VISION = (
    "You are a helpful language and vision assistant. You are able to understand the visual content"
    " that the user provides, and assist the user with a variety of tasks using natural language."
)
_CURIOUS_HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives"
    " helpful, detailed, and polite answers to the human's questions."
)

# Names of released code bases, normalised as in `_normalise`: our template and, where it differs
# from that template's own, the default system text.
_ALIASES: dict[str, tuple[str, str | None]] = {
    "v1": ("vicuna-v1", None),
    "llava-v1": ("vicuna-v1", _CURIOUS_HUMAN),
    "v0-plain": ("plain", None),
    "llama2": ("llama-2", None),
    "llava-llama-2": ("llama-2", _LANGUAGE_AND_VISION),
    "llama3": ("llama-3", None),
    "llama-3-1": ("llama-3", None),
    "llava-llama-3": ("llama-3", None),
    "mistral-instruct": ("mistral", None),
    "chatml-direct": ("chatml", None),
    "mistral-direct": ("chatml", None),
    "gemma-2": ("gemma", None),
    "internlm2-chat": ("internvl", None),
}

# Wordings of released code that no new model uses; `vistoken.data.released_templates` has their
# prompts and masks, for the labels of released training alone.
_RELEASED_ONLY = ("default", "v0", "llava-v0", "v0-mmtag", "v1-mmtag", "mpt")

_SYSTEM_LINE = re.compile(r'^\{%- set system = "(?:[^"\\]|\\.)*" -%\}$', re.MULTILINE)


def template_names() -> tuple[str, ...]:
    """Names of the templates in the package, sorted, without aliases."""
    return _NAMES


def canonical_name(name: str) -> str:
    """Our name for a template that may be named as a released code base does.

    Args:
        name: A template name or alias; case and `_` against `-` do not matter.

    Returns:
        One of `template_names()`.

    Raises:
        UsageError: The name is unknown, or that of a wording only released training labels have.
    """
    return _resolve(name)[0]


@cache
def load_template(name: str) -> str:
    """Text of a chat template.

    Args:
        name: A template name, or the name a released code base uses for it (`v1`,
            `llava_llama_2`, `chatml_direct`, ...). An alias with a system text of its own gets it.

    Returns:
        The jinja source, ready for `tokenizer.chat_template`.

    Raises:
        UsageError: The name is unknown, or that of a wording only released training labels have.
    """
    canonical, system = _resolve(name)
    text = resources.files(__name__).joinpath(f"{canonical}.jinja").read_text(encoding="utf-8")
    if system is None:
        return text
    line = "{%- set system = " + json.dumps(system) + " -%}"
    return _SYSTEM_LINE.sub(lambda _: line, text, count=1)


def _resolve(name: str) -> tuple[str, str | None]:
    key = _normalise(name)
    if key in _NAMES:
        return key, None
    if key in _ALIASES:
        return _ALIASES[key]
    if key in _RELEASED_ONLY:
        raise UsageError(
            f"chat template {name!r} exists for training with labels: official only;"
            f" use one of {', '.join(_NAMES)}"
        )
    raise UsageError(f"unknown chat template {name!r}; {did_you_mean(key, [*_NAMES, *_ALIASES])}")


def _normalise(name: str) -> str:
    return name.strip().lower().replace("_", "-")
