"""How the web page is laid out, and which control does what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import gradio as gr

from vistoken.serve.page_talk import CHOICES, PageError, Talk, Talking, note, usage_words
from vistoken.serve.settings import ServeSettings

if TYPE_CHECKING:
    from vistoken.serve.engine import EmbeddedEngine

Update = dict[Any, Any]

_HOUR = 3600
_PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
_FIRST_CHOICE = next(iter(CHOICES))


def lay_out_page(engines: Mapping[str, EmbeddedEngine], settings: ServeSettings) -> gr.Blocks:
    """Make the page.

    Args:
        engines: The models, by name.
        settings: Limits on pictures.
    """
    names = list(engines)
    talking = Talking(engines, settings.max_pixels)
    with gr.Blocks(
        title="vistoken", analytics_enabled=False, fill_width=True, delete_cache=(_HOUR, _HOUR)
    ) as blocks:
        talk = gr.State(Talk())
        gr.Markdown("# vistoken", elem_id="heading")
        with gr.Row(elem_id="columns"):
            with gr.Column(min_width=280, scale=2):
                picture = gr.Image(
                    label="Picture: drop, paste or choose one",
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "clipboard"],
                    buttons=[],
                    height=300,
                    elem_id="picture",
                )
                model = gr.Dropdown(names, value=names[0], label="Model", elem_id="model")
                with gr.Accordion("Settings", open=False):
                    most = gr.Slider(1, 512, value=128, step=1, label="Longest answer (tokens)")
            with gr.Column(min_width=280, scale=3):
                chat = gr.Chatbot(
                    label="Answers",
                    height=360,
                    buttons=["copy"],
                    feedback_options=None,
                    allow_tags=False,
                    elem_id="chat",
                    placeholder="Show a picture and ask about it.",
                )
                question = gr.Textbox(
                    label="Question (Enter sends it)",
                    placeholder="What is in the picture?",
                    autofocus=True,
                    max_length=8000,
                    elem_id="question",
                )
                with gr.Row(elem_id="buttons"):
                    send = gr.Button("Ask", variant="primary", min_width=80, elem_id="ask")
                    stop = gr.Button("Stop", min_width=80, elem_id="stop")
                    clear = gr.Button("Start over", min_width=100, elem_id="clear")
                status = gr.Markdown("", elem_id="status")
        with gr.Tabs(elem_id="drawings"):
            with gr.Tab("What it looked at"):
                choice = gr.Dropdown(
                    list(CHOICES), value=_FIRST_CHOICE, label="Attention", elem_id="choice"
                )
                attention = gr.HTML(note("Ask about a picture first."), elem_id="attention")
            with gr.Tab("Visual tokens"):
                tokens = gr.HTML(note("Show a picture first."), elem_id="tokens")

        def shown(path: str | None, name: str) -> Update:
            """A new picture begins a new talk."""
            try:
                begun = talking.open(path)
                drawn = talking.tokens(name, begun)
            except PageError as error:
                return {talk: Talk(), chat: [], status: _refusal(error), tokens: note(str(error))}
            size = "" if begun.picture is None else _size(begun)
            return {talk: begun, chat: [], status: size, tokens: drawn,
                    attention: note("Ask about the picture first.")}  # fmt: skip

        def answer(
            text: str, said: list[Any], now: Talk, name: str, longest: int, wanted: str
        ) -> Iterator[Update]:
            """Answer piece by piece, then draw."""
            if not text.strip():
                yield {status: "Write what you want to know."}
                return
            said = [*said, {"role": "user", "content": text}]
            yield {question: "", chat: said, status: "Reading…"}
            try:
                for told in talking.ask(name, now, text, int(longest)):
                    reply = {"role": "assistant", "content": told.text or "…"}
                    done = told.usage is not None
                    if done and not told.text.strip():
                        reply["content"] = "(the model's answer is empty)"
                    update: Update = {chat: [*said, reply], talk: told.talk}
                    update[status] = "Writing…"
                    if told.usage is not None:
                        update[status] = usage_words(told.usage)
                    yield update
                    now = told.talk
            except PageError as error:
                yield {status: _refusal(error)}
                return
            yield {attention: _drawn(talking, name, now, wanted)}

        def redraw(now: Talk, name: str, wanted: str) -> Update:
            """Another kind of attention for the same answer."""
            return {attention: _drawn(talking, name, now, wanted)}

        def switched(now: Talk, name: str) -> Update:
            """Another model makes other tokens."""
            return {tokens: talking.tokens(name, now)}

        after = [question, chat, status, talk, attention]
        given = [question, chat, talk, model, most, choice]
        sent = [
            gr.on(
                [question.submit, send.click], answer, given, after,
                concurrency_limit=None, trigger_mode="once", **_PRIVATE,
            )
        ]  # fmt: skip
        drawn = [talk, chat, status, tokens, attention]
        picture.change(shown, [picture, model], drawn, cancels=sent, **_PRIVATE)
        choice.change(redraw, [talk, model, choice], [attention], **_PRIVATE)
        model.change(switched, [talk, model], [tokens], **_PRIVATE)
        stop.click(lambda: "Stopped.", None, status, cancels=sent, **_PRIVATE)
        clear.click(shown, [picture, model], drawn, cancels=sent, **_PRIVATE)
    return blocks


def _drawn(talking: Talking, name: str, talk: Talk, choice: str) -> str:
    try:
        return talking.attention(name, talk, choice)
    except PageError as error:
        return note(str(error))


def _size(talk: Talk) -> str:
    if talk.picture is None:
        return ""
    image = talk.picture.image
    return f"{image.height} x {image.width} pixels (height x width)"


def _refusal(error: Exception) -> str:
    return f"**Not answered:** {error}"
