"""The processor: chat template, tokenizer and image processor in one, the Hugging Face way."""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import ProcessorMixin
from transformers.image_processing_base import BatchFeature
from transformers.processing_utils import MultiModalData

from vistoken.core.errors import DataError, UsageError
from vistoken.models.dialogue import render_dialogue, tells_answers
from vistoken.models.image_processing import VistokenImageProcessor, flatten, views_of
from vistoken.models.text_map import prompt_maps
from vistoken.models.unread_parts import refuse_unread_parts

_OFFSETS = {"return_offsets_mapping": True, "return_special_tokens_mask": True}
_ONLY_FOR_MAP = ("offset_mapping", "special_tokens_mask", "text_replacement_offsets")


class VistokenProcessor(ProcessorMixin):
    """Text and pictures -> model inputs; every image mark is expanded to its visual tokens.

    Args:
        image_processor: Knows views and token counts.
        tokenizer: Its vocabulary must contain ``image_token``.
        chat_template: The checkpoint's template.
        image_token: The placeholder's text.
        image_gap: Text put after an image that other text follows; None decides by the tokenizer
            so that the ids are those of LLaVA's released code, empty text puts nothing.
    """

    skip_tensor_conversion = ["pixel_values", "view_table", "text_replacement_offsets"]

    def __init__(
        self,
        image_processor: VistokenImageProcessor | None = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        image_token: str = "<image>",
        image_gap: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.image_token = image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        if self.image_token_id in (None, tokenizer.unk_token_id):
            raise UsageError(
                f"the tokenizer has no token {image_token!r}; add it with "
                f"tokenizer.add_special_tokens({{'additional_special_tokens': [{image_token!r}]}})"
            )
        if image_gap is None:
            image_gap = _gap_after_image(tokenizer, image_token)
        self.image_gap = image_gap
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        videos: Any = None,
        audio: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepare prompts and pictures.

        Args:
            images: Pictures in order of their marks: one, a list, or one list per prompt.
            text: A prompt or a list of prompts, with one image mark per picture.
            videos: Not supported yet.
            audio: Not supported.
            **kwargs: Tokenizer options such as ``return_tensors`` and ``padding``.

        Raises:
            DataError: Marks and pictures do not match, or an empty prompt.
        """
        if videos is not None or audio is not None:
            raise UsageError(
                "this processor takes text and images; video and audio have no part yet"
            )
        pictures = [] if images is None else flatten(images)
        prompts = [text] if isinstance(text, str) else list(text or [])
        if any(isinstance(prompt, str) and not prompt.strip() for prompt in prompts):
            raise DataError("the prompt is empty; write a question")
        if text is not None:
            self._check_marks(prompts, images, len(pictures))
        if self.image_gap:
            mark = re.escape(self.image_token)
            after = re.compile(f"{mark}(?=.)(?!{mark})", re.DOTALL)
            prompts = [after.sub(self.image_token + self.image_gap, prompt) for prompt in prompts]
        return super().__call__(images=pictures or None, text=prompts or None, **kwargs)

    def apply_chat_template(
        self,
        conversation: Any,
        chat_template: str | None = None,
        *args: Any,
        return_text_map: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Render conversations and, with ``tokenize``, prepare them.

        Args:
            conversation: A conversation or a list of them.
            chat_template: Another template than the checkpoint's own.
            *args: As in ``ProcessorMixin``.
            return_text_map: Also give ``text_map``, (B, n, K) int64: what every position is, who
                wrote it and in which round. A prompt that was rendered elsewhere and comes in
                through a plain call has none, and its map keeps the defaults: role TEMPLATE, turn
                -1. Needs ``tokenize``, ``return_dict`` and a template with generation blocks.
            **kwargs: As in ``ProcessorMixin``.

        Raises:
            UsageError: A text map cannot be made.
            DataError: The template refuses the messages, they hold videos or boxes, or marks and
                pictures do not match.
        """
        several = bool(conversation) and not isinstance(conversation[0], dict)
        for messages in conversation if several else [conversation]:
            refuse_unread_parts(messages)
        if not return_text_map:
            return super().apply_chat_template(conversation, chat_template, *args, **kwargs)
        if args or not (kwargs.get("tokenize") and kwargs.get("return_dict")):
            raise UsageError("return_text_map needs tokenize=True and return_dict=True, by name")
        template = str(chat_template or self.chat_template)
        dialogues = [
            render_dialogue(
                self.tokenizer, template, messages, bool(kwargs.get("add_generation_prompt"))
            )
            for messages in (conversation if several else [conversation])
        ]
        options = {**(kwargs.pop("processor_kwargs", None) or {}), **_OFFSETS}
        made = super().apply_chat_template(
            conversation, chat_template, processor_kwargs=options, **kwargs
        )
        text_map = prompt_maps(self, dialogues, made)
        return BatchFeature(
            {**{k: v for k, v in made.items() if k not in _ONLY_FOR_MAP}, "text_map": text_map}
        )

    @property
    def tells_roles(self) -> bool:
        """Whether the chat template says who wrote what, so that there can be a text map."""
        return isinstance(self.chat_template, str) and tells_answers(self.chat_template)

    def _check_marks(self, prompts: list[str], images: Any, pictures: int) -> None:
        marks = [prompt.count(self.image_token) for prompt in prompts]
        if sum(marks) != pictures:
            raise DataError(
                f"the prompt has {sum(marks)} {self.image_token} marks for {pictures} images; "
                f"write one {self.image_token} per image"
            )
        nested = isinstance(images, (list, tuple)) and all(
            isinstance(group, (list, tuple)) for group in images
        )
        if not nested or len(images) != len(prompts):
            return
        for number, (count, group) in enumerate(zip(marks, images, strict=True)):
            if count != len(flatten(group)):
                raise DataError(
                    f"prompt {number} has {count} {self.image_token} marks for "
                    f"{len(flatten(group))} images; write one {self.image_token} per image"
                )

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **_: Any) -> str:
        """Placeholder text of one image: its mark, once per visual token."""
        table = views_of(torch.as_tensor(image_inputs["view_table"]), image_idx)
        return self.image_token * len(self.image_processor.plan.arrange(table).order)

    def _get_num_multimodal_tokens(
        self, image_sizes: list[tuple[int, int]] | None = None, **_: Any
    ) -> MultiModalData:
        """Tokens and views per image from sizes (height, width) alone, for servers."""
        if image_sizes is None:
            return MultiModalData()
        tables = [self.image_processor.view_table(height, width) for height, width in image_sizes]
        plan = self.image_processor.plan
        return MultiModalData(
            num_image_tokens=[len(plan.arrange(table).order) for table in tables],
            num_image_patches=[len(table) for table in tables],
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready settings (without what the tokenizer knows)."""
        values: dict[str, Any] = super().to_dict()
        return {k: v for k, v in values.items() if k != "image_token_id"}

    @property
    def model_input_names(self) -> list[str]:
        """Names of the model inputs this processor makes."""
        return [*self.tokenizer.model_input_names, *self.image_processor.model_input_names]


def _gap_after_image(tokenizer: Any, image_token: str) -> str:
    """What to write after an image mark so that the text there is tokenised as released.

    Released models tokenise the text after an image as a text of its own, so a sentencepiece
    tokenizer puts its word mark in front. In one call some tokenizers do so only at the start of
    the text (``legacy=False``); for them a space gives the same ids.
    """

    def ids(text: str) -> list[int]:
        encoded: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return encoded

    alone = ids("a")
    if ids(image_token + "a")[1:] == alone or ids(image_token + " a")[1:] != alone:
        return ""
    return " "
