"""Where a model looked while it answered: an answer, its tokens, and their attention.

look = look_at(model, processor, [image], "What is this?")
draw_look(look).save("attention.png")
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from vistoken.core.errors import DataError
from vistoken.core.tables import TOKEN, TextRole, TokenKind, rectangles
from vistoken.models.scatter import answer_rows
from vistoken.viz.attention import Choice, read_attention

if TYPE_CHECKING:
    from vistoken.models import VistokenForConditionalGeneration, VistokenProcessor

Messages = list[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Look:
    """What the model attended to while it wrote each token of an answer.

    Args:
        picture: The picture, RGB.
        question: What was asked.
        words: Text of each of the A answer tokens.
        tokens (Tensor): (N, K) int64, the picture's TokenMap.
        weights (Tensor): (A, N) float32, mean of the layers: weight on each of them.
        shares: For each answer token, where all its weight went: ``picture`` (tokens with a place
            in it), ``spatial``, ``other visual`` (registers, separators, newlines, padding),
            ``question``, ``answer``, ``unused``, and ``further pictures``; they sum to 1.
        by_layer (Tensor): (L, A), weight on all visual tokens in each layer.
        layers: The layers' numbers.
        of: Whose attention it is, in words.
    """

    picture: Image.Image
    question: str
    words: tuple[str, ...]
    tokens: Tensor
    weights: Tensor
    shares: tuple[dict[str, float], ...]
    by_layer: Tensor
    layers: tuple[int, ...]
    of: str

    @property
    def placed(self) -> Tensor:
        """Tokens (N,) bool that are drawn on the picture."""
        return placed_tokens(self.tokens, (self.picture.height, self.picture.width))

    @property
    def spatial(self) -> Tensor:
        """Tokens (N,) bool that are drawn as bars beside it."""
        return TOKEN.get(self.tokens, "kind") == TokenKind.SPATIAL


def placed_tokens(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Tokens (N,) bool that stand for a part of the picture.

    Learned rows, registers (they see everything), spatial tokens and those that show nothing but
    padding do not.

    Args:
        tokens (Tensor): (N, K) int64, the picture's TokenMap.
        size: (height, width) of the picture in pixels.
    """
    kind = TOKEN.get(tokens, "kind")
    told = torch.zeros_like(kind, dtype=torch.bool)
    for wanted in (TokenKind.VISUAL, TokenKind.THUMBNAIL, TokenKind.OBJECT):
        told |= kind == wanted
    top, left, bottom, right = rectangles(tokens).unbind(-1)
    down = bottom.clamp(max=size[0]) > top.clamp(min=0)
    across = right.clamp(max=size[1]) > left.clamp(min=0)
    return told & (TOKEN.get(tokens, "learned") < 0) & down & across


def look_at(
    model: VistokenForConditionalGeneration,
    processor: VistokenProcessor,
    picture: Image.Image,
    question: str,
    *,
    answer: str | Sequence[int] | None = None,
    history: Messages | None = None,
    choice: Choice | None = None,
    max_new_tokens: int = 32,
) -> Look:
    """Answer a question about a picture, and say what each token of the answer attended to.

    Args:
        model: The model, in evaluation mode.
        processor: Its processor.
        picture: The picture, RGB.
        question: The question.
        answer: An answer that was given already, text or token ids; the model's greedy one when
            None.
        history: Earlier messages, the picture's place in one of them; the picture belongs to the
            question when None.
        choice: Layers and heads.
        max_new_tokens: Longest answer.

    Raises:
        DataError: The question is empty, or there is no answer to look at.
        UsageError: No such layer or head, or the model cannot tell its attention.
    """
    if not question.strip():
        raise DataError("the question is empty; write what you want to know")
    choice = (choice or Choice()).check(model.config.text_config)
    content = [{"type": "text", "text": question}]
    if not history:
        content.insert(0, {"type": "image"})
    messages = [*(history or []), {"role": "user", "content": content}]
    inputs = prompt_inputs(processor, messages, [picture]).to(model.device)
    with torch.no_grad():
        features = model.get_image_features(
            as_weights(model, inputs["pixel_values"]), inputs["view_table"]
        )
        ids = _answer_ids(model, processor, inputs, features, answer, max_new_tokens)
    if ids.numel() == 0:
        raise DataError("the model's answer is empty, so there is no token to look from")
    prompt = inputs["input_ids"]
    whole = torch.cat([prompt, ids[None]], 1)
    text_map = answer_rows(prompt_text_map(inputs), whole.shape[1])
    asked = torch.zeros_like(whole, dtype=torch.bool)
    asked[:, prompt.shape[1] - 1 : -1] = True
    reading = read_attention(
        model, whole, asked, choice=choice, features=features, text_map=text_map
    )
    table = reading.token_map[0]
    own = TOKEN.get(table, "media") == 0
    weights, unused = reading.mean[0], reading.unused.mean(0)[0]
    visual = TOKEN.get(table, "media") >= 0
    return Look(
        picture=picture,
        question=question,
        words=tuple(_words(processor, ids)),
        tokens=table[own],
        weights=weights[:, own],
        shares=tuple(
            _shares(table, weights, unused, prompt.shape[1], (picture.height, picture.width))
        ),
        by_layer=reading.weights[:, 0][..., visual].sum(-1),
        layers=reading.layers,
        of=describe(choice, model.config.text_config.num_hidden_layers),
    )


def describe(choice: Choice, layers: int) -> str:
    """Whose attention a checked choice means, in words."""
    if choice.rollout:
        return f"rollout through {layers} layers"
    if len(choice.layers) == layers:
        which = f"mean of {layers} layers"
    elif len(choice.layers) == 1:
        which = f"layer {choice.layers[0]}"
    else:
        which = "mean of layers " + ", ".join(map(str, choice.layers))
    return f"{which}, " + ("all heads" if choice.head is None else f"head {choice.head}")


def prompt_inputs(
    processor: VistokenProcessor, messages: Messages, pictures: list[Image.Image]
) -> Any:
    """Model inputs of a conversation, with the text map where the template tells roles."""
    options: dict[str, Any] = {"return_text_map": True} if processor.tells_roles else {}
    return processor.apply_chat_template(
        messages,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"images": pictures},
        **options,
    )


def as_weights(model: Any, pixels: Any) -> Any:
    """Pixels in the type of the weights that read them."""
    if isinstance(pixels, Tensor):
        return pixels.to(model.dtype)
    return [view.to(model.dtype) for view in pixels]


def prompt_text_map(inputs: Any) -> Tensor:
    """The prompt's text map (1, n, K); one that tells only that it is asked, if it has none."""
    if "text_map" in inputs:
        found: Tensor = inputs["text_map"]
        return found
    ids = inputs["input_ids"]
    # the prompt is asked, whoever wrote it: what mechanisms need is where the answer begins
    rows = TOKEN.make(ids.numel(), role=TextRole.USER, turn=0)
    return rows.unflatten(0, tuple(ids.shape)).to(ids.device)


def _answer_ids(
    model: Any,
    processor: Any,
    inputs: Any,
    features: Any,
    answer: str | Sequence[int] | None,
    most: int,
) -> Tensor:
    """Ids (A,) of the answer, without what ends it."""
    tokenizer, prompt = processor.tokenizer, inputs["input_ids"]
    if isinstance(answer, str):
        answer = tokenizer(answer, add_special_tokens=False)["input_ids"]
    if answer is not None:
        return _without_end(tokenizer, torch.tensor(list(answer), dtype=prompt.dtype)).to(
            prompt.device
        )
    given = {k: v for k, v in inputs.items() if k not in ("pixel_values", "view_table")}
    out = model.generate(
        **given, mm_encoder_outputs={"image": features}, do_sample=False, max_new_tokens=most
    )[0, prompt.shape[1] :]
    return _without_end(tokenizer, out)


def _without_end(tokenizer: Any, ids: Tensor) -> Tensor:
    """Ids (A,) up to the first special one."""
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids, device=ids.device))
    return ids[: int((~special).cumprod(0).sum())]


def _words(processor: Any, ids: Tensor) -> list[str]:
    """What each token adds to the text; bytes of one character come with its last token."""
    texts, told = [], ""
    for stop in range(1, len(ids) + 1):
        text = processor.tokenizer.decode(ids[:stop].tolist())
        whole = text.rstrip("�") if stop < len(ids) else text
        texts.append(whole[len(told) :] if len(whole) >= len(told) else "")
        told = whole
    return texts


def _shares(
    table: Tensor, weights: Tensor, unused: Tensor, prompt: int, size: tuple[int, int]
) -> list[dict[str, float]]:
    """Where all weight (A, n) of each answer token went, by name."""
    media, kind = TOKEN.get(table, "media"), TOKEN.get(table, "kind")
    own, placed = media == 0, torch.zeros_like(media, dtype=torch.bool)
    placed[own] = placed_tokens(table[own], size)
    spatial = own & (kind == TokenKind.SPATIAL)
    answer = (media < 0) & (torch.arange(len(table)) >= prompt)
    groups = {
        "picture": placed,
        "spatial": spatial,
        "other visual": own & ~placed & ~spatial,
        "further pictures": media > 0,
        "question": (media < 0) & ~answer,
        "answer": answer,
    }
    rows = []
    for row, lost in zip(weights, unused, strict=True):
        shares = {name: float(row[mask].sum()) for name, mask in groups.items()}
        rows.append(shares | {"unused": float(lost)})
    return rows
