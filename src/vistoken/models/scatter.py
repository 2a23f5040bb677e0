"""Putting visual tokens at their placeholders, and saying what every position then holds."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from vistoken.core.errors import UsageError
from vistoken.core.tables import TEXT_COLUMNS, TOKEN, TextRole, TokenKind
from vistoken.models.outputs import ImageFeatures
from vistoken.models.pipeline import Arrangement


def placeholder_mask(
    input_ids: Tensor | None, inputs_embeds: Tensor, image_token_id: int, placeholder: Tensor
) -> Tensor:
    """Where visual tokens belong: the one place that compares token ids.

    Args:
        input_ids (Tensor): (B, n) int64, or None when only embeddings are known.
        inputs_embeds (Tensor): (B, n, D).
        image_token_id: Id of the placeholder.
        placeholder (Tensor): (D,), its embedding.

    Returns:
        (B, n) bool.
    """
    if input_ids is None:
        return placeholders_of_embeddings(inputs_embeds, placeholder)
    return input_ids == image_token_id


def placeholders_of_embeddings(inputs_embeds: Tensor, placeholder: Tensor) -> Tensor:
    """Mask (B, n) of the rows of ``inputs_embeds`` (B, n, D) that equal ``placeholder`` (D,)."""
    return (inputs_embeds == placeholder.to(inputs_embeds)).all(-1)


def scatter_rows(mask: Tensor, inputs_embeds: Tensor, features: ImageFeatures) -> Tensor:
    """Replace placeholder rows by visual tokens.

    Args:
        mask (Tensor): (B, n) bool, the placeholders.
        inputs_embeds (Tensor): (B, n, D).
        features: Visual tokens of the batch's images, in order of appearance.

    Returns:
        (B, n, D) with visual rows in place.

    Raises:
        ValueError: The prompt has another number of placeholders than there are tokens.
    """
    rows = torch.cat(list(features.pooler_output)).to(inputs_embeds)
    placeholders = int(mask.sum())
    if placeholders != len(rows):
        raise ValueError(
            f"the prompt has {placeholders} image placeholders but the images give {len(rows)} "
            "visual tokens; let the processor expand the prompt, and do not truncate it inside "
            "an image"
        )
    return inputs_embeds.masked_scatter(mask.unsqueeze(-1), rows)


def feature_rows(token_map: Tensor) -> Tensor:
    """Rows (...) bool of a TokenMap (..., K) that stand for one encoder feature each.

    Patches and the encoder's prefix tokens do. Learned rows (newlines, separators) and what a
    connector makes (spatial, object, appended tokens) do not.
    """
    kind = TOKEN.get(token_map, "kind")
    with_feature = (kind == TokenKind.VISUAL) | (kind == TokenKind.REGISTER)
    return with_feature & (TOKEN.get(token_map, "learned") < 0)


def slot_features(arrangement: Arrangement, features: list[Tensor]) -> Tensor:
    """Encoder features of one medium in the order of the slots that stand for them.

    Args:
        arrangement: The medium's predicted tokens.
        features: For each anchor view, (N, width), what entered the projection.

    Returns:
        (N_i, width), one row per slot that :func:`feature_rows` names.

    Raises:
        UsageError: The connector does not make one token of each feature, behind those of its own.
    """
    rows = torch.cat(features)
    kept = feature_rows(arrangement.token_map)
    order = arrangement.order
    counts = [len(view) for view in features]
    own = [made - count for made, count in zip(arrangement.counts, counts, strict=True)]
    ends = torch.tensor(arrangement.counts).cumsum(0)
    view = torch.searchsorted(ends, order.clamp(min=0), right=True)
    place = order - (ends - torch.tensor(counts))[view]  # among the view's features
    fits = min(own, default=0) >= 0 and bool((kept == ((place >= 0) & (order >= 0))).all())
    if not fits:
        raise UsageError(
            f"a decoder mechanism needs one visual token per encoder feature, but the connector "
            f"makes {sum(arrangement.counts)} tokens of {sum(counts)} features; leave the 'reduce' "
            "stages that change their number out of its chain."
        )
    starts = torch.tensor(counts).cumsum(0) - torch.tensor(counts)
    chosen = (starts[view] + place)[kept]
    return rows[chosen.to(rows.device)]


def batch_token_map(
    mask: Tensor,
    attention_mask: Tensor | None,
    features: ImageFeatures,
    text_map: Tensor | None = None,
) -> Tensor | None:
    """The TokenMap (B, n, K) of a batch; None when the features came without their maps.

    Args:
        mask (Tensor): (B, n) bool, the placeholders.
        attention_mask (Tensor): (B, n), 0 on padding; another shape marks none.
        features: Holds the images' token maps.
        text_map (Tensor): (B, n, K) int64, turn, role, sample and branch of every position.
    """
    if features.token_map is None:
        return None
    batch, length = mask.shape
    if text_map is None:
        table = TOKEN.make(batch * length).to(mask.device).unflatten(0, (batch, length))
    else:
        table = text_map.to(mask.device, copy=True)
    said = {column: TOKEN.get(table[mask], column) for column in TEXT_COLUMNS}
    table[mask] = TOKEN.set(torch.cat(features.token_map).to(mask.device), **said)
    if attention_mask is not None and attention_mask.shape == mask.shape:
        table[attention_mask == 0] = TOKEN.make(1, kind=TokenKind.PAD).to(mask.device)
    return table


def answer_rows(text_map: Tensor, length: int) -> Tensor:
    """A prompt's text map with rows for what is written after it.

    Args:
        text_map (Tensor): (B, n, K) int64, the last row of each prompt no padding.
        length: Positions wanted.

    Returns:
        (B, at least ``length``, K) int64; the further rows are the assistant's, in the round,
        sample and branch of the prompt's last one.
    """
    more = length - text_map.shape[1]
    if more <= 0:
        return text_map
    said = {column: TOKEN.get(text_map[:, -1], column) for column in TEXT_COLUMNS}
    said["role"] = torch.full_like(said["role"], TextRole.ASSISTANT)
    row = TOKEN.set(TOKEN.make(len(text_map)).to(text_map.device), **said)
    return torch.cat([text_map, row[:, None].expand(-1, more, -1)], 1)


def fitting_text_map(
    text_map: Tensor | None, inputs_embeds: Tensor, cache: Cache | None
) -> Tensor | None:
    """The text map of a call; None for a cached step, whose tokens came after the map was made.

    Args:
        text_map (Tensor): (B, n, K) int64 of the prompt.
        inputs_embeds (Tensor): (B, m, D), what this call reads.
        cache: Cache of earlier calls.

    Raises:
        ValueError: It has other positions than the prompt.
    """
    if text_map is None or text_map.shape[:2] == inputs_embeds.shape[:2]:
        return text_map
    if cache is not None and cache.get_seq_length():
        return None
    raise ValueError(
        f"text_map has {tuple(text_map.shape[:2])} positions, the prompt "
        f"{tuple(inputs_embeds.shape[:2])}; make it of the same tokens"
    )


def repeat_by_owner(image_tokens: list[int], prompt_tokens: list[int], times: int) -> list[int]:
    """Indices that repeat each prompt's whole group of images: [A, B] twice -> [A, B, A, B].

    Args:
        image_tokens: Visual tokens of each image, in order.
        prompt_tokens: Placeholders of each prompt, in order.
        times: Number of copies of each prompt.

    Raises:
        ValueError: The images' tokens do not divide among the prompts.
    """
    order: list[int] = []
    image = 0
    for prompt, wanted in enumerate(prompt_tokens):
        group: list[int] = []
        while wanted > 0 and image < len(image_tokens):
            group.append(image)
            wanted -= image_tokens[image]
            image += 1
        if wanted != 0:
            raise ValueError(f"prompt {prompt}: placeholders do not match the images' tokens")
        order += group * times
    return order
