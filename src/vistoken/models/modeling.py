"""The model with its language-modelling head.

``VistokenForConditionalGeneration`` honours the Hugging Face contract (``vision_tower``,
``multi_modal_projector``, ``language_model``, ``lm_head``, ``get_image_features``,
``mm_encoder_outputs``), so PEFT, accelerate, ``generate`` and servers work without special code.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin
from transformers.cache_utils import Cache
from transformers.generation.configuration_utils import GenerationMode

from vistoken.core.tables import TOKEN
from vistoken.models.backbone import VistokenModel, VistokenPreTrainedModel
from vistoken.models.configuration import VistokenConfig
from vistoken.models.decoder import aux_loss, check_generation, make_cache, shifted_labels
from vistoken.models.outputs import ImageFeatures, VistokenCausalLMOutput
from vistoken.models.scatter import answer_rows, repeat_by_owner

__all__ = ["VistokenForConditionalGeneration", "VistokenModel"]


class VistokenForConditionalGeneration(VistokenPreTrainedModel, GenerationMixin):
    """The vision-language model with its language-modelling head."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: VistokenConfig) -> None:
        super().__init__(config)
        self.model = VistokenModel(config)
        text = config.text_config
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The language model's token embedding."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's token embedding."""
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The language-modelling head."""
        return self.lm_head

    def get_image_features(
        self,
        pixel_values: Tensor | list[Tensor] | None = None,
        view_table: Tensor | None = None,
        tower_features: list[tuple[Tensor, ...]] | None = None,
        return_dict: bool | None = None,
    ) -> ImageFeatures:
        """See :meth:`VistokenModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, view_table, tower_features, return_dict)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | list[Tensor] | None = None,
        view_table: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        tower_features: list[tuple[Tensor, ...]] | None = None,
        mm_encoder_outputs: dict[str, ImageFeatures] | None = None,
        text_map: Tensor | None = None,
        **kwargs: Any,
    ) -> VistokenCausalLMOutput:
        """Run the model; see :meth:`VistokenModel.forward` for the inputs.

        Args:
            input_ids (Tensor): (B, n) int64.
            pixel_values: Views of all images.
            view_table (Tensor): (V, K) int64.
            attention_mask (Tensor): (B, n).
            position_ids (Tensor): (B, n).
            past_key_values: Cache of earlier calls.
            inputs_embeds (Tensor): (B, n, D) instead of ``input_ids``.
            labels (Tensor): (B, n) int64, -100 where not supervised.
            logits_to_keep: Number of last positions, or the positions, to compute logits for.
            tower_features: Cached features of frozen towers, instead of pixels.
            mm_encoder_outputs: Encoded images, instead of pixels.
            text_map (Tensor): (B, n, K) int64, turn, role, sample and branch of every position.
            **kwargs: Handed to the language model and the loss.

        Returns:
            Loss (when labels are given), logits (B, n or kept, vocabulary), cache, token map.
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            view_table=view_table,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            tower_features=tower_features,
            mm_encoder_outputs=mm_encoder_outputs,
            text_map=text_map,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        hidden = outputs.last_hidden_state[:, kept, :]
        logits = self.lm_head(hidden)
        loss = None
        if labels is not None:
            if outputs.rows is not None:
                kwargs["shift_labels"] = shifted_labels(labels, outputs.rows)
            loss = self.loss_function(
                logits=logits,
                labels=labels,
                vocab_size=self.config.text_config.vocab_size,
                **kwargs,
            )
            of_mechanisms = aux_loss(outputs.aux or {})
            if of_mechanisms is not None:
                loss = loss + of_mechanisms
        return VistokenCausalLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            token_map=outputs.token_map,
            rows=outputs.rows,
            aux=outputs.aux,
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        text_map: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Inputs of one call of ``generate``; what is written goes on the text map as an answer.

        Args:
            input_ids (Tensor): (B, n) int64.
            attention_mask (Tensor): (B, k), all positions so far.
            text_map (Tensor): (B, p, K) int64 of the prompt.
            **kwargs: As in ``GenerationMixin``.
        """
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids, attention_mask=attention_mask, **kwargs
        )
        if text_map is not None:
            given = inputs.get("inputs_embeds")
            read = (inputs["input_ids"] if given is None else given).shape[1]
            cache = inputs.get("past_key_values")
            seen = 0 if cache is None else cache.get_seq_length()
            stop = seen + read if attention_mask is None else attention_mask.shape[-1]
            inputs["text_map"] = answer_rows(text_map, stop)[:, stop - read : stop]
        return inputs

    def _prepare_cache_for_generation(
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: GenerationMode,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Give ``generate`` the cache that the mechanisms need, or refuse what they exclude."""
        stack = self.model.stack
        if len(stack):
            check_generation(stack, generation_config, beams="beam" in generation_mode.value)
        given = model_kwargs.get("past_key_values")
        done = super()._prepare_cache_for_generation(
            generation_config, model_kwargs, generation_mode, *args, **kwargs
        )
        reread = not generation_config.use_cache and bool(model_kwargs.get("mm_encoder_outputs"))
        if (stack.shortens or reread) and model_kwargs.get("text_map") is None:
            # says in later, uncached steps which rows the model wrote itself
            mask = model_kwargs.get("attention_mask")  # may be left out without padding
            prompt = model_kwargs["position_ids"] if mask is None else mask
            rows = TOKEN.make(prompt.numel()).unflatten(0, prompt.shape)
            model_kwargs["text_map"] = rows.to(prompt.device)
        if stack.own_cache and given is None and "past_key_values" in model_kwargs:
            model_kwargs["past_key_values"] = make_cache(self.config.text_config, stack)
        return done

    def _expand_multimodal_outputs(
        self,
        input_ids: Tensor,
        mm_encoder_output: dict[str, Any],
        expand_size: int = 1,
        inputs_embeds: Tensor | None = None,
    ) -> dict[str, Any]:
        """Repeat every per-image list for beams, grouped by the prompt that owns the images."""
        features: ImageFeatures | None = mm_encoder_output.get("image")
        if features is None:
            return mm_encoder_output
        if input_ids is None or input_ids.numel() == 0:
            raise ValueError("beams and several sequences need input_ids, not inputs_embeds alone")
        wanted = (input_ids == self.config.image_token_id).sum(-1).tolist()
        order = repeat_by_owner([len(rows) for rows in features.pooler_output], wanted, expand_size)
        repeated = ImageFeatures(
            pooler_output=[features.pooler_output[i] for i in order],
            token_map=None
            if features.token_map is None
            else [TOKEN.set(features.token_map[i], media=n) for n, i in enumerate(order)],
            side={k: [v[i] for i in order] for k, v in (features.side or {}).items()},
        )
        return {**mm_encoder_output, "image": repeated}
