"""Conversation templates of released LLaVA code as rendering rules, for its label masks only.

New models use the jinja templates of `vistoken.models.templates`. What is here besides them exists
because the released masks are cut out of these very strings: an empty answer that stays open, the
separators left-stripped character by character, and three wordings (`v0`, `mpt`, `mmtag`) that no
jinja template holds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from vistoken.core.errors import DataError, UsageError, did_you_mean
from vistoken.models.templates import load_template

Style = Literal["single", "two", "llama-2", "mpt", "plain"]
Speaker = Literal["human", "gpt"]

OPEN_IMAGE = "<im_start>"
CLOSE_IMAGE = "<im_end>"

_MMTAG_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant is able"
    " to understand the visual content that the user provides, and assist the user with a variety"
    " of tasks using natural language.The visual content will be provided with the following"
    " format: <Image>visual content</Image>."
)
_MPT_SYSTEM = (
    "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and"
    " honest answers."
)
_SYSTEM_OF_JINJA = re.compile(r'\{%- set system = ("(?:[^"\\]|\\.)*") -%\}')


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn as released data files hold it."""

    speaker: Speaker
    text: str


@dataclass(frozen=True, slots=True)
class ReleasedTemplate:
    """How a released template writes a conversation.

    Attributes:
        name: Its name in the released code.
        style: Which rendering and which mask rule apply.
        system: The opening text, empty for none.
        human: Role text of the user.
        assistant: Role text of the assistant.
        sep: Separator after a user turn, or after every turn.
        sep2: Separator after an answer, where it differs.
        tags: Whether a picture's mark is put between `<Image>` tags.
    """

    name: str
    style: Style
    system: str
    human: str
    assistant: str
    sep: str
    sep2: str = ""
    tags: bool = False

    def render(self, turns: Sequence[Turn]) -> str:
        """The conversation as one prompt; a turn without text is open.

        Args:
            turns: Human and gpt in turn, human first.

        Raises:
            DataError: The template cannot write such turns.
        """
        if self.style == "single":
            return self._render_in_turn(turns, self.sep, self.sep)
        if self.style == "two":
            return self._render_in_turn(turns, self.sep, self.sep2)
        if self.style == "mpt":
            return self._render_mpt(turns)
        if self.style == "llama-2":
            return self._render_llama_2(turns)
        return self._render_plain(turns)

    def _render_in_turn(self, turns: Sequence[Turn], after_human: str, after_gpt: str) -> str:
        text = self.system + self.sep
        for turn in turns:
            role = self.human if turn.speaker == "human" else self.assistant
            end = after_human if turn.speaker == "human" else after_gpt
            text += f"{role}: {turn.text}{end}" if turn.text else f"{role}:"
        return text

    def _render_mpt(self, turns: Sequence[Turn]) -> str:
        text = self.system + self.sep
        for turn in turns:
            role = self.human if turn.speaker == "human" else self.assistant
            text += role + turn.text + self.sep if turn.text else role
        return text

    def _render_llama_2(self, turns: Sequence[Turn]) -> str:
        if not turns or not turns[0].text:
            raise DataError(f"template {self.name} needs a first question that is not empty")
        text = ""
        for number, turn in enumerate(turns):
            if not turn.text:
                continue
            if turn.speaker == "gpt":
                text += f" {turn.text} {self.sep2}"
                continue
            system = f"<<SYS>>\n{self.system}\n<</SYS>>\n\n" if self.system and not number else ""
            text += f"{self.sep}[INST] {system}{turn.text} [/INST]"
        # Characters, not the separator: an opening `<<SYS>>` would be shortened as well.
        return text.lstrip(self.sep)

    def _render_plain(self, turns: Sequence[Turn]) -> str:
        spoken = [turn.text for turn in turns if turn.text]
        if len(spoken) > 1:
            raise DataError("the plain template has no prompt of several turns")
        return "".join(text + self.sep for text in spoken)


@cache
def released_template(name: str) -> ReleasedTemplate:
    """A released template by its released name.

    Args:
        name: `v1`, `llava_llama_2`, `mpt`, ...; `-` and `_` are the same.

    Raises:
        UsageError: There is no such template; released code would quietly take `vicuna_v1`.
    """
    key = name.strip().lower().replace("-", "_")
    if key not in _RULES:
        raise UsageError(f"unknown released template {name!r}; {did_you_mean(key, _RULES)}")
    style, system, tags = _RULES[key]
    if style == "single":
        roles, seps = ("Human", "Assistant"), ("###", "")
    elif style == "two":
        roles, seps = ("USER", "ASSISTANT"), (" ", "</s>")
    elif style == "mpt":
        roles, seps = ("<|im_start|>user\n", "<|im_start|>assistant\n"), ("<|im_end|>", "")
    elif style == "llama-2":
        roles, seps = ("USER", "ASSISTANT"), ("" if key.startswith("mistral") else "<s>", "</s>")
    else:
        roles, seps = ("", ""), ("\n", "")
    text = _system_of(system) if system in _FROM_JINJA else system
    if style == "mpt":
        text = f"<|im_start|>system\n{text}"
    return ReleasedTemplate(key, style, text, *roles, *seps, tags=tags)


def released_template_names() -> tuple[str, ...]:
    """Names of the released templates, sorted."""
    return tuple(sorted(_RULES))


def _system_of(template: str) -> str:
    """Default system text of a jinja template, so that each text is written once."""
    found = _SYSTEM_OF_JINJA.search(load_template(template))
    if found is None:
        raise ValueError(f"template {template} sets no system text")
    return str(json.loads(found.group(1)))


_FROM_JINJA = ("vicuna-v1", "llava-v1", "llama-2", "llava-llama-2", "chatml")

# Style, system text (or the jinja template that holds it), tags.
_RULES: dict[str, tuple[Style, str, bool]] = {
    "v1": ("two", "vicuna-v1", False),
    "vicuna_v1": ("two", "vicuna-v1", False),
    "llava_v1": ("two", "llava-v1", False),
    "v1_mmtag": ("two", _MMTAG_SYSTEM, True),
    "plain": ("plain", "", False),
    "v0_plain": ("plain", "", False),
    "llama_2": ("llama-2", "llama-2", False),
    "llava_llama_2": ("llama-2", "llava-llama-2", False),
    "mistral_instruct": ("llama-2", "", False),
    "mpt": ("mpt", _MPT_SYSTEM, False),
    "chatml_direct": ("mpt", "chatml", False),
    "mistral_direct": ("mpt", "chatml", False),
    "v0": ("single", "llava-v1", False),
    "default": ("single", "llava-v1", False),
    "llava_v0": ("single", "llava-v1", False),
    "v0_mmtag": ("single", _MMTAG_SYSTEM, True),
}
