"""Stage 0: visual tokens learn to lie near the names of what they show.

No pass of the language model: a token whose source rectangle's centre lies in an object's box must
be nearest to that object's name, a token on the background to its colour word. A name is the mean
of the language model's input embeddings of its tokens. Not part of LLaVA-SP's recipe; it replaces
what its first stage learns from 558 K captions where there are a few thousand pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vistoken.core.errors import DataError
from vistoken.core.tables import TOKEN, TokenKind
from vistoken.train.scenes import Scene, cell_words

if TYPE_CHECKING:
    from vistoken.models.modeling import VistokenForConditionalGeneration


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
