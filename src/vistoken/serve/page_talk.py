"""What happens behind the web page: a talk about a picture, and drawings of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vistoken.core.errors import VistokenError
from vistoken.models.images import open_image
from vistoken.serve.asking import ask
from vistoken.serve.engine import Conversation, Delta, Done, Picture, Sampling, Usage
from vistoken.serve.errors import RequestError
from vistoken.viz.attention import Choice
from vistoken.viz.attention_page import look_page
from vistoken.viz.fates import tell_story
from vistoken.viz.looking import look_at
from vistoken.viz.story_page import story_page

if TYPE_CHECKING:
    from vistoken.serve.engine import EmbeddedEngine

CHOICES = {
    "mean of all layers": Choice(),
    "first layer": Choice(layers=(0,)),
    "last layer": Choice(layers=(-1,)),
    "rollout through all layers": Choice(rollout=True),
}
"""What attention the page draws, by what it is called there."""

Messages = list[dict[str, Any]]
PageError = (RequestError, VistokenError)
"""What a visitor is told in one sentence; anything else is a fault of ours."""


@dataclass(frozen=True)
class Answered:
    """A question that was answered, as it is needed to draw it."""

    question: str
    before: Messages
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Talk:
    """One visitor's conversation.

    Args:
        messages: What was said, the picture's place in the first message.
        picture: The picture; None for a talk without one.
        last: The last answer.
    """

    messages: Messages = field(default_factory=list)
    picture: Picture | None = None
    last: Answered | None = None


@dataclass(frozen=True)
class Told:
    """An answer as far as it has come.

    Args:
        text: So far.
        talk: The talk, with the answer once it is complete.
        usage: What it took; None while it goes on.
    """

    text: str
    talk: Talk
    usage: Usage | None = None


class Talking:
    """Questions to the models of a server, one method for each thing that the page does.

    Args:
        engines: The models, by name.
        max_pixels: Largest picture.
    """

    def __init__(self, engines: Mapping[str, EmbeddedEngine], max_pixels: int) -> None:
        self._engines, self._max_pixels = engines, max_pixels

    def open(self, path: str | None) -> Talk:
        """Begin a talk about an uploaded picture, or about none.

        Raises:
            DataError: It is not a picture, or too large.
        """
        if path is None:
            return Talk()
        data = Path(path).read_bytes()
        image = open_image(data, max_pixels=self._max_pixels, where="the picture")
        return Talk(picture=Picture(image, hashlib.sha256(data).hexdigest()))

    def ask(self, model: str, talk: Talk, question: str, most: int) -> Iterator[Told]:
        """Ask, and give the answer as it comes.

        Args:
            model: Name of the model.
            talk: What was said so far.
            question: The question.
            most: Longest answer in tokens.

        Raises:
            RequestError: It cannot be answered, or not now.
            VistokenError: The talk does not fit the model.
        """
        content: Messages = [{"type": "text", "text": question}]
        if talk.picture is not None and not talk.messages:
            content.insert(0, {"type": "image"})
        messages = [*talk.messages, {"role": "user", "content": content}]
        pictures = [] if talk.picture is None else [talk.picture]
        wanted = Conversation(messages, pictures, Sampling(max_tokens=most))
        text = ""
        ids: list[int] = []
        for event in ask(self._engines[model], wanted):
            if isinstance(event, Delta):
                text += event.text
                ids.extend(event.tokens)
                yield Told(text, talk)
            elif isinstance(event, Done):
                last = Answered(question, talk.messages, tuple(ids))
                if text.strip():  # templates refuse a turn in which nothing was said
                    said = {"role": "assistant", "content": [{"type": "text", "text": text}]}
                    talk = replace(talk, messages=[*messages, said])
                yield Told(text, replace(talk, last=last), event.usage)

    def attention(self, model: str, talk: Talk, choice: str) -> str:
        """The last answer's attention as an HTML frame; a sentence where there is none.

        Raises:
            VistokenError: The model cannot tell it.
        """
        last, picture = talk.last, talk.picture
        if picture is None:
            return note("Show a picture to see what the model looked at.")
        if last is None or not last.ids:
            return note("Ask something to see what the model looked at.")
        wanted = CHOICES[choice]

        def look(loaded: Any, processor: Any) -> str:
            layers = loaded.config.text_config.num_hidden_layers
            named = replace(wanted, layers=tuple(layer % layers for layer in wanted.layers))
            found = look_at(
                loaded, processor, picture.image, last.question,
                answer=last.ids, history=last.before, choice=named,
            )  # fmt: skip
            return look_page(found, "What the model looked at")

        return frame(self._engines[model].run(look), "Attention of each answer token")

    def tokens(self, model: str, talk: Talk) -> str:
        """The picture's visual tokens as an HTML frame; a sentence where there is none."""
        picture = talk.picture
        if picture is None:
            return note("Show a picture to see its visual tokens.")
        image = picture.image

        def tell(loaded: Any, processor: Any) -> str:
            table = processor.image_processor.view_table(image.height, image.width)
            story = tell_story(processor.image_processor.plan, table)
            return story_page(image, story, f"Visual tokens of {model}")

        return frame(self._engines[model].run(tell), "Visual tokens of the picture")


def usage_words(usage: Usage) -> str:
    """What an answer took, for people."""
    visual = f"{usage.visual_tokens} visual and " if usage.visual_tokens else ""
    text = usage.prompt_tokens - usage.visual_tokens
    waited = f", waited {usage.queue_ms:.0f} ms" if usage.queue_ms >= 1 else ""
    return (
        f"**{visual}{text} text tokens** in, first token after **{usage.first_token_ms:.0f} ms**; "
        f"**{usage.completion_tokens} tokens** out in **{usage.total_ms:.0f} ms**{waited}"
    )


def frame(page: str, title: str) -> str:
    """A self-contained page as a frame that can run its script and reach nothing else."""
    return (
        f'<iframe class="drawing" title="{escape(title)}" sandbox="allow-scripts" '
        f'srcdoc="{escape(page)}"></iframe>'
    )


def note(text: str) -> str:
    """A sentence in place of a drawing."""
    return f'<p class="nothing">{escape(text)}</p>'
