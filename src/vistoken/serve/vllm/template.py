"""The chat template as vLLM needs it: with what our processor does beside rendering.

vLLM renders a conversation and tokenises the text without special tokens and without our
processor. So the template it gets writes the opening token and the gap after an image itself; the
ids are then those of :meth:`VistokenProcessor.apply_chat_template`.
"""

from __future__ import annotations

import json
from typing import Any

from vistoken.core.errors import UsageError
from vistoken.models.processing import VistokenProcessor

_WRAPPED = """\
{%%- set rendered -%%}
%(template)s
{%%- endset -%%}
{{- %(opening)s -}}
{%%- for piece in rendered.split(%(mark)s) -%%}
    {%%- if not loop.first -%%}
        {{- %(mark)s ~ (%(gap)s if piece else '') -}}
    {%%- endif -%%}
    {{- piece -}}
{%%- endfor -%%}
"""


def template_for_vllm(processor: VistokenProcessor) -> str:
    """Chat template of a processor, complete in itself.

    Raises:
        UsageError: There is none, or no text gives the tokenizer's opening tokens.
    """
    template = processor.chat_template
    if not isinstance(template, str) or not template.strip():
        raise UsageError(
            "the checkpoint has no chat template; hand vLLM one with --chat-template FILE"
        )
    return _WRAPPED % {
        "template": template.strip(),
        "opening": json.dumps(opening_text(processor.tokenizer)),
        "mark": json.dumps(processor.image_token),
        "gap": json.dumps(processor.image_gap),
    }


def opening_text(tokenizer: Any) -> str:
    """What to write before a prompt so that it opens as the tokenizer opens it.

    A sentencepiece tokenizer puts its word mark before the first word, some of them not behind a
    special token; there a space gives the same ids (see ``image_gap``).

    Raises:
        UsageError: No text does.
    """
    probe = "a"

    def ids(text: str, special: bool) -> list[int]:
        encoded: list[int] = tokenizer.encode(text, add_special_tokens=special)
        return encoded

    wanted = ids(probe, True)
    added = len(wanted) - len(ids(probe, False))
    marks = "".join(tokenizer.convert_ids_to_tokens(wanted[:added]))
    for text in (marks, f"{marks} "):
        if ids(text + probe, False) == wanted:
            return text
    raise UsageError(
        f"no text makes this tokenizer open a prompt with the ids {wanted[:added]}; hand vLLM a "
        "chat template with --chat-template FILE"
    )
