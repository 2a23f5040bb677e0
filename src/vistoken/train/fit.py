"""Whether a tokenizer belongs to a model, before anything is trained with the wrong words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vistoken.core.errors import WeightsError

if TYPE_CHECKING:
    from vistoken.models.modeling import VistokenForConditionalGeneration
    from vistoken.models.processing import VistokenProcessor


def check_tokenizer(
    model: VistokenForConditionalGeneration, processor: VistokenProcessor, source: str
) -> None:
    """Refuse a tokenizer of another model.

    Args:
        model: The model.
        processor: Holds the tokenizer.
        source: Where both come from.

    Raises:
        WeightsError: The model has no embedding for a token, or another token for pictures.
    """
    embedding: Any = model.get_input_embeddings()
    rows = embedding.weight.shape[0]
    highest = max(processor.tokenizer.get_vocab().values())
    if highest >= rows:
        raise WeightsError(
            f"{source}: the tokenizer goes up to token {highest}, but the model embeds {rows} "
            "tokens; put the tokenizer files beside it that the model was trained with"
        )
    if processor.image_token_id != model.config.image_token_id:
        raise WeightsError(
            f"{source}: {processor.image_token!r} is token {processor.image_token_id} of the "
            f"tokenizer, but the model puts pictures at token {model.config.image_token_id}; put "
            "the tokenizer files beside it that the model was trained with"
        )
