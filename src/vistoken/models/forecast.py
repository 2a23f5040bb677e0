"""What a picture and some text will take, before anything runs: tokens, FLOPs and memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from vistoken.core.tables import TOKEN, VIEW
from vistoken.models.cost import ModelCost, measure_cost
from vistoken.models.footprint import Held, fused_attention
from vistoken.models.modeling import VistokenForConditionalGeneration
from vistoken.models.pipeline import PipelineSpec


@dataclass(frozen=True)
class Context:
    """Whether a prompt fits into the language model.

    Args:
        needed: Tokens of picture and text.
        positions: Positions of the language model; None where its configuration names none.
        advice: What to do if it does not fit; empty if it does.
    """

    needed: int
    positions: int | None
    advice: str

    @property
    def fits(self) -> bool:
        """Whether at least one position is left for the answer."""
        return self.positions is None or self.needed < self.positions


@dataclass(frozen=True)
class InferenceMemory:
    """Bytes that answering takes.

    The working memory is an estimate: what operators hold at the fullest moment of each phase with
    a fused attention, without the workspace of kernels, fragments of the allocator and the
    runtime's own share. The language model is counted without its mechanisms there.

    Args:
        weights: All parameters and buffers.
        cache: Key-value cache behind the prompt.
        cache_per_token: What a further token adds to it.
        encoding: Working memory of the towers, with the pixels.
        connecting: Of connector and layout, with pixels and features.
        prefill: Of the language model over the prompt, without the cache.
    """

    weights: int
    cache: int
    cache_per_token: int
    encoding: int
    connecting: int
    prefill: int

    @property
    def activations(self) -> int:
        """Working memory of the fullest phase."""
        return max(self.encoding, self.connecting, self.prefill)

    @property
    def peak(self) -> int:
        """Most that is held at a time; the cache is there from the prompt on."""
        return self.weights + max(self.encoding, self.connecting, self.cache + self.prefill)


@dataclass(frozen=True)
class Forecast:
    """Prediction for one picture.

    Args:
        view_table (Tensor): (V, K) int64.
        token_map (Tensor): (N, K) int64.
        cost: Parameters and FLOPs.
        memory: Bytes.
        context: Whether it fits.
    """

    view_table: Tensor
    token_map: Tensor
    cost: ModelCost
    memory: InferenceMemory
    context: Context

    @property
    def tokens_of_views(self) -> tuple[int, ...]:
        """Tokens that stand for each view; separators, newlines and the like for none."""
        return view_tokens(self.view_table, self.token_map)


def view_tokens(view_table: Tensor, token_map: Tensor) -> tuple[int, ...]:
    """Tokens that stand for each view of one medium.

    Args:
        view_table (Tensor): (V, K) int64.
        token_map (Tensor): (N, K) int64.
    """
    counts = Counter(TOKEN.get(token_map, "view").tolist())
    return tuple(counts[index] for index in VIEW.get(view_table, "index").tolist())


def forecast(
    model: VistokenForConditionalGeneration,
    spec: PipelineSpec,
    image_size: tuple[int, int],
    text_tokens: int = 64,
    dtype: torch.dtype = torch.bfloat16,
) -> Forecast:
    """Predict what one picture and some text take.

    Args:
        model: The model on the meta device; it is brought to ``dtype``.
        spec: Its pipeline with the processor's views.
        image_size: (height, width) of the picture.
        text_tokens: Tokens of text beside it, at least 1.
        dtype: Floating type of weights, arithmetic and cache.

    Raises:
        UsageError: No text token, an empty picture, or more visual tokens than the layout allows.
        DataError: A picture that the views refuse.
    """
    table = spec.view_function().view_table(*image_size)
    cost = measure_cost(model.float(), spec, image_size, text_tokens)
    model.to(dtype)
    return Forecast(
        table,
        model.model.plan.token_map(table),
        cost,
        _memory(model, table, cost, dtype),
        _context(model, spec, cost),
    )


def _memory(
    model: VistokenForConditionalGeneration, table: Tensor, cost: ModelCost, dtype: torch.dtype
) -> InferenceMemory:
    held = Held(model)
    peaks: list[int] = []

    def passed() -> None:
        peaks.append(held.peak)
        held.peak = held.now

    with fused_attention(model), torch.no_grad(), held:
        pixels = [
            torch.empty(3, int(height), int(width), dtype=dtype, device="meta")
            for height, width in zip(
                VIEW.get(table, "height"), VIEW.get(table, "width"), strict=True
            )
        ]
        features, _ = model.model.encode(pixels, table)
        passed()
        image = model.get_image_features(tower_features=features, view_table=table)
        passed()
        del features
        tokens = image.pooler_output[0]
        text = tokens.new_empty(cost.text_tokens, tokens.shape[-1])
        prompt = torch.cat([tokens, text])[None]
        outputs = model.model.language_model(inputs_embeds=prompt, use_cache=True)
        model.lm_head(outputs.last_hidden_state[:, -1:])
        passed()
    stock_cache = cost.cache_bytes(dtype) * (cost.visual_tokens + cost.text_tokens)
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}.values()
    return InferenceMemory(
        weights=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        cache=cost.prompt_cache_values * dtype.itemsize,
        cache_per_token=cost.cache_bytes(dtype),
        encoding=peaks[0],
        connecting=peaks[1],
        prefill=peaks[2] - stock_cache,
    )


def _context(
    model: VistokenForConditionalGeneration, spec: PipelineSpec, cost: ModelCost
) -> Context:
    positions = model.model.positions
    context = Context(cost.visual_tokens + cost.text_tokens, positions, "")
    if positions is None or context.fits:
        return context
    ways = model.model.plan.ways_out(spec.view_function().fewer_tokens)
    height, width = cost.image_size
    advice = (
        f"a picture of {height}x{width} pixels becomes {cost.visual_tokens:,} visual tokens in "
        f"{cost.views} views, which with {cost.text_tokens:,} of text leaves none of the language "
        f"model's {positions:,} positions for an answer; " + ", or ".join(ways)
    )
    return Context(context.needed, positions, advice)
