"""Stage 0: visual tokens learn to lie near the names of what they show.

No pass of the language model: a token whose source rectangle's centre lies in an object's box must
be nearest to that object's name, a token on the background to its colour word. A name is the mean
of the language model's input embeddings of its tokens. Not part of LLaVA-SP's recipe; it replaces
what its first stage learns from 558 K captions where there are a few thousand pictures.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vistoken.core.errors import DataError
from vistoken.core.tables import TOKEN, TokenKind, rectangles

if TYPE_CHECKING:
    from vistoken.models.modeling import VistokenForConditionalGeneration

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Scene:
    """What is known of one picture.

    Attributes:
        image: Path, relative to the image root.
        names: Names of its objects.
        boxes: Their boxes (top, left, bottom, right) in pixels, bottom and right exclusive.
        background: The background's colour word, None when it is not known.
        ignored: Boxes whose tokens show something without a name, such as painted text.
    """

    image: str
    names: tuple[str, ...]
    boxes: tuple[Box, ...]
    background: str | None
    ignored: tuple[Box, ...] = ()


def scenes_file(data: Path) -> Path:
    """Annotations beside a data file: ``train.jsonl`` -> ``train.scenes.jsonl``."""
    return data.with_suffix(".scenes.jsonl")


def read_scenes(path: Path) -> list[Scene]:
    """Read scene annotations.

    Raises:
        DataError: The file is missing or a line is not a scene; the message names the line.
    """
    if not path.is_file():
        raise DataError(
            f"{path} does not exist; name-alignment and name retrieval need scene annotations "
            "(vistoken data make writes them)"
        )
    scenes = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            scenes.append(_scene(json.loads(line)))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}, line {number}: not a scene annotation ({error})") from error
    return scenes


def _scene(row: dict[str, Any]) -> Scene:
    objects = row["objects"]
    text = row.get("text")
    return Scene(
        row["image"],
        tuple(thing["name"] for thing in objects),
        tuple(_box(thing["box"]) for thing in objects),
        row.get("background"),
        (_box(text["box"]),) if text else (),
    )


def _box(values: Sequence[float]) -> Box:
    top, left, bottom, right = (float(value) for value in values)
    return top, left, bottom, right


def vocabulary(scenes: Sequence[Scene]) -> list[str]:
    """All names and background colours of scenes, sorted."""
    words = {name for scene in scenes for name in scene.names}
    return sorted(words | {scene.background for scene in scenes if scene.background is not None})


def cell_words(token_map: Tensor, scene: Scene) -> list[str | None]:
    """The word that each token of a picture shows, by the centre of its source rectangle.

    Args:
        token_map (Tensor): (N, K) int64.
        scene: What is in the picture.

    Returns:
        N words; None where nothing is known: tokens that are not patches, centres outside every
        known area. Of overlapping boxes the last drawn one counts.
    """
    kinds = TOKEN.get(token_map, "kind").tolist()
    centres = rectangles(token_map)
    rows = ((centres[:, 0] + centres[:, 2]) / 2).tolist()
    cols = ((centres[:, 1] + centres[:, 3]) / 2).tolist()
    words: list[str | None] = []
    for kind, y, x in zip(kinds, rows, cols, strict=True):
        word = None
        if kind == TokenKind.VISUAL and not any(_inside(y, x, box) for box in scene.ignored):
            word = scene.background
            for name, box in zip(scene.names, scene.boxes, strict=True):
                if _inside(y, x, box):
                    word = name
        words.append(word)
    return words


def _inside(y: float, x: float, box: Box) -> bool:
    top, left, bottom, right = box
    return top <= y < bottom and left <= x < right


class NameSpace:
    """Words as points among the language model's input embeddings.

    Args:
        model: Gives the embeddings.
        tokenizer: Turns a word, with the space before it, into tokens.
        words: The words to choose from.
        temperature: Of the softmax over cosines.
    """

    def __init__(
        self,
        model: VistokenForConditionalGeneration,
        tokenizer: Any,
        words: Sequence[str],
        temperature: float = 0.05,
    ) -> None:
        self.words = list(words)
        self.temperature = temperature
        self._index = {word: number for number, word in enumerate(self.words)}
        embedding: Any = model.get_input_embeddings()
        table: Tensor = embedding.weight.detach()
        means = []
        for word in self.words:
            ids = tokenizer(" " + word, add_special_tokens=False)["input_ids"]
            means.append(table[torch.tensor(ids, device=table.device)].float().mean(0))
        points = torch.stack(means)
        self.centre = points.mean(0)
        self.points = F.normalize(points - self.centre, dim=-1)

    def targets(self, token_map: Tensor, scene: Scene) -> Tensor:
        """Number of each token's word, (N,) int64; -100 where there is none."""
        words = cell_words(token_map, scene)
        return torch.tensor([-100 if w is None else self._index.get(w, -100) for w in words])

    def logits(self, tokens: Tensor) -> Tensor:
        """Cosine of each token (N, D) with each word (N, W), over the temperature."""
        centred = tokens.float() - self.centre
        return F.normalize(centred, dim=-1) @ self.points.T / self.temperature


@dataclass(frozen=True)
class PatchTokens:
    """One picture's tokens of kind VISUAL.

    Attributes:
        tokens: (N, D).
        token_map: (N, K) int64.
    """

    tokens: Tensor
    token_map: Tensor


def patch_tokens(
    model: VistokenForConditionalGeneration,
    tower_features: list[tuple[Tensor, ...]],
    view_table: Tensor,
) -> list[PatchTokens]:
    """The connector's patch tokens of every picture: the only ones with a place of their own.

    Args:
        model: Gives the connector.
        tower_features: For each anchor view, one map per tower.
        view_table (Tensor): (V, K) int64, views of all pictures.

    Returns:
        One entry per picture.
    """
    features = model.get_image_features(view_table=view_table, tower_features=tower_features)
    pictures = []
    for tokens, token_map in zip(features.pooler_output, features.token_map or [], strict=True):
        visual = TOKEN.get(token_map, "kind") == TokenKind.VISUAL
        pictures.append(PatchTokens(tokens[visual.to(tokens.device)], token_map[visual]))
    return pictures


@dataclass(frozen=True)
class Retrieval:
    """How often the nearest word is right.

    Attributes:
        names: Right tokens on objects, and how many there were.
        colours: Right tokens on the background, and how many there were.
    """

    names: tuple[int, int]
    colours: tuple[int, int]

    @property
    def name_accuracy(self) -> float:
        """Share of right tokens on objects."""
        return self.names[0] / max(self.names[1], 1)

    @property
    def colour_accuracy(self) -> float:
        """Share of right tokens on the background."""
        return self.colours[0] / max(self.colours[1], 1)


def score(
    space: NameSpace, pictures: Sequence[PatchTokens], scenes: Sequence[Scene]
) -> tuple[Tensor, Retrieval]:
    """Alignment loss and retrieval of a batch of pictures.

    Args:
        space: The words.
        pictures: The connector's tokens and their maps.
        scenes: What is in each picture.

    Returns:
        Cross-entropy over all tokens that show a known word (0-d), and the retrieval counts.

    Raises:
        DataError: No token of the batch shows a known word.
    """
    chosen: list[Tensor] = []
    wanted: list[Tensor] = []
    on_background: list[Tensor] = []
    for picture, scene in zip(pictures, scenes, strict=True):
        target = space.targets(picture.token_map.cpu(), scene)
        kept = torch.nonzero(target != -100).flatten()
        chosen.append(picture.tokens[kept.to(picture.tokens.device)])
        wanted.append(target[kept])
        colour = space.words.index(scene.background) if scene.background in space.words else -1
        on_background.append(target[kept] == colour)
    target = torch.cat(wanted)
    if not len(target):
        named = ", ".join(scene.image for scene in scenes[:3])
        raise DataError(f"no visual token of {named} shows a known name or colour")
    logits = space.logits(torch.cat(chosen))
    target = target.to(logits.device)
    loss = F.cross_entropy(logits, target)
    right = (logits.detach().argmax(-1) == target).cpu()
    background = torch.cat(on_background)
    return loss, Retrieval(
        (int(right[~background].sum()), int((~background).sum())),
        (int(right[background].sum()), int(background.sum())),
    )
