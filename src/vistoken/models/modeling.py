"""The model: vision towers -> connector -> layout -> scatter -> language model.

``VistokenForConditionalGeneration`` honours the Hugging Face contract (``vision_tower``,
``multi_modal_projector``, ``language_model``, ``lm_head``, ``get_image_features``,
``mm_encoder_outputs``), so PEFT, accelerate, ``generate`` and servers work without special code.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

from vistoken.core.parts import ConnectorState
from vistoken.core.tables import TOKEN, VIEW, TokenKind, split_media
from vistoken.models.configuration import VistokenConfig
from vistoken.models.decoder import build_stack, run_decoder
from vistoken.models.encoder import encode_views
from vistoken.models.outputs import ImageFeatures, VistokenCausalLMOutput, VistokenModelOutput
from vistoken.models.pipeline import TokenPlan, anchor_rows


class VistokenPreTrainedModel(PreTrainedModel):
    """Loading, saving and capability flags shared by both model classes."""

    config: VistokenConfig
    config_class = VistokenConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules: list[str] = []
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def _init_weights(self, module: nn.Module) -> None:
        # PyTorch's own initialisation is the released recipe for new modules
        # (LLaVA-SP, section 4); towers and language models initialise themselves.
        if isinstance(module, PreTrainedModel) and module is not self:
            module._init_weights(module)


class VistokenModel(VistokenPreTrainedModel):
    """Vision towers, connector, layout and headless language model."""

    def __init__(self, config: VistokenConfig) -> None:
        super().__init__(config)
        self.plan = TokenPlan(config.pipeline())
        towers = [AutoModel.from_config(c) for c in config.vision_config.tower_configs()]
        names = [spec.name for spec in self.plan.spec.towers]
        self.vision_tower: nn.Module = (
            towers[0] if len(towers) == 1 else nn.ModuleDict(dict(zip(names, towers, strict=True)))
        )
        self.multi_modal_projector, self.layout = self.plan.build()
        self.language_model = AutoModel.from_config(config.text_config)
        self.stack = build_stack(config.decoder_config["mechanisms"], config.text_config)
        modules = {m.name: m for m in self.stack if isinstance(m, nn.Module)}
        if modules:
            self.mechanisms = nn.ModuleDict(modules)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The language model's token embedding."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's token embedding."""
        self.language_model.set_input_embeddings(value)

    def towers(self) -> list[nn.Module]:
        """The vision towers in order."""
        if isinstance(self.vision_tower, nn.ModuleDict):
            return list(self.vision_tower.values())
        return [self.vision_tower]

    def encode(
        self, pixel_values: Tensor | list[Tensor], view_table: Tensor
    ) -> tuple[list[tuple[Tensor, ...]], list[Tensor]]:
        """Run the vision towers only.

        Args:
            pixel_values: (V, 3, H, W), or V tensors where sizes differ.
            view_table (Tensor): (V, K) int64.

        Returns:
            For each anchor view, its feature maps (R, C, width), one per tower; and its kept
            prefix tokens (P, width).
        """
        layers = self.config.vision_config.feature_layers()
        towers = list(zip(self.plan.spec.towers, layers, self.towers(), strict=True))
        return encode_views(towers, pixel_values, view_table.cpu())

    def get_image_features(
        self,
        pixel_values: Tensor | list[Tensor] | None = None,
        view_table: Tensor | None = None,
        tower_features: list[tuple[Tensor, ...]] | None = None,
        return_dict: bool | None = None,
    ) -> ImageFeatures:
        """Visual tokens of every image.

        Args:
            pixel_values: (V, 3, H, W) float, views of all images in order; a list of V tensors
                (3, H, W) where sizes differ.
            view_table (Tensor): (V, K) int64, one row per view. May be left out only when every
                image is one view of the nominal size (one tower).
            tower_features: Instead of pixels: for each anchor view its feature maps, as
                :meth:`encode` gives them (frozen towers, cached).
            return_dict: Accepted for Hugging Face's ``generate``; always a dictionary.

        Returns:
            Per-image visual tokens, token maps and side tensors.

        Raises:
            ValueError: The view table does not fit the pixels.
        """
        if view_table is None:
            view_table = self._default_view_table(pixel_values)
        table = view_table.cpu()
        VIEW.check(table)
        prefixes: list[Tensor]
        if tower_features is None:
            if pixel_values is None:
                raise ValueError("get_image_features needs pixel_values or tower_features")
            if len(pixel_values) != len(table):
                raise ValueError(
                    f"view_table has {len(table)} rows for {len(pixel_values)} views in "
                    "pixel_values; pass both as the processor returned them"
                )
            tower_features, prefixes = self.encode(pixel_values, table)
        else:
            weight = next(self.multi_modal_projector.parameters())
            tower_features = [tuple(m.to(weight) for m in maps) for maps in tower_features]
            prefixes = [maps[0].new_empty(0, maps[0].shape[-1]) for maps in tower_features]
        state = ConnectorState(table, anchor_rows(table), tower_features)
        state = self.multi_modal_projector(state, prefixes)
        return self._lay_out(table, state)

    def _lay_out(self, table: Tensor, state: ConnectorState) -> ImageFeatures:
        media = split_media(table)
        counts = [len(anchor_rows(medium)) for medium in media]
        bounds = [0, *accumulate(counts)]
        rows: list[Tensor] = []
        maps: list[Tensor] = []
        for number, medium in enumerate(media):
            tokens = state.tokens[bounds[number] : bounds[number + 1]]
            predicted = self.plan.arrange(medium)
            if tuple(len(t) for t in tokens) != predicted.counts:
                raise ValueError(
                    f"image {number}: the connector gave {[len(t) for t in tokens]} tokens per "
                    f"view where its token map predicts {list(predicted.counts)}"
                )
            rows.append(self.layout(predicted.order, tokens))
            maps.append(TOKEN.set(predicted.token_map, media=number))
        side = {
            name: [values[a:b] for a, b in pairwise(bounds)]
            for name, values in state.side.items()
        }
        return ImageFeatures(pooler_output=rows, token_map=maps, side=side)

    def _default_view_table(self, pixel_values: Tensor | list[Tensor] | None) -> Tensor:
        specs = self.plan.spec.towers
        if pixel_values is None or len(specs) > 1:
            raise ValueError("view_table is missing; pass it as the processor returned it")
        if any(tuple(view.shape[-2:]) != specs[0].size for view in pixel_values):
            raise ValueError(
                f"without a view_table every image must be {specs[0].size[0]}x{specs[0].size[1]} "
                "pixels; pass the view_table that the processor returned"
            )
        height, width = specs[0].size
        return VIEW.make(
            len(pixel_values),
            height=height,
            width=width,
            bottom=height,
            right=width,
            orig_height=height,
            orig_width=width,
        )

    def scatter(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None,
        features: ImageFeatures,
    ) -> tuple[Tensor, Tensor]:
        """Put visual tokens at their placeholders: the one place that compares token ids.

        Args:
            input_ids (Tensor): (B, n) int64, or None when only embeddings are known.
            inputs_embeds (Tensor): (B, n, D).
            attention_mask (Tensor): (B, n), or another shape that does not mark padding.
            features: Visual tokens of the batch's images, in order of appearance.

        Returns:
            Embeddings (B, n, D) with visual rows in place, and the batch's TokenMap (B, n, K).

        Raises:
            ValueError: The prompt has another number of placeholders than there are tokens.
        """
        if input_ids is None:
            token = torch.full((), self.config.image_token_id, device=inputs_embeds.device)
            mask = (inputs_embeds == self.get_input_embeddings()(token)).all(-1)
        else:
            mask = input_ids == self.config.image_token_id
        rows = torch.cat(list(features.pooler_output)).to(inputs_embeds)
        placeholders = int(mask.sum())
        if placeholders != len(rows):
            raise ValueError(
                f"the prompt has {placeholders} image placeholders but the images give "
                f"{len(rows)} visual tokens; let the processor expand the prompt, and do not "
                "truncate it inside an image"
            )
        embeds = inputs_embeds.masked_scatter(mask.unsqueeze(-1), rows)
        return embeds, self._batch_token_map(mask, attention_mask, features)

    def _batch_token_map(
        self, mask: Tensor, attention_mask: Tensor | None, features: ImageFeatures
    ) -> Tensor:
        batch, length = mask.shape
        table = TOKEN.make(batch * length).to(mask.device).unflatten(0, (batch, length))
        table[mask] = torch.cat(list(features.token_map or [])).to(mask.device)
        if attention_mask is not None and attention_mask.shape == mask.shape:
            pad = attention_mask == 0
            table[pad] = TOKEN.make(1, kind=TokenKind.PAD).to(mask.device)
        return table

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | list[Tensor] | None = None,
        view_table: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        tower_features: list[tuple[Tensor, ...]] | None = None,
        mm_encoder_outputs: dict[str, ImageFeatures] | None = None,
        **kwargs: Any,
    ) -> VistokenModelOutput:
        """Encode media if given, scatter them, run the language model.

        Args:
            input_ids (Tensor): (B, n) int64 with every placeholder expanded.
            pixel_values: See :meth:`get_image_features`.
            view_table: See :meth:`get_image_features`.
            attention_mask (Tensor): (B, n), or a ready 4-D mask (packing).
            position_ids (Tensor): (B, n).
            past_key_values: Cache of earlier calls.
            inputs_embeds (Tensor): (B, n, D) instead of ``input_ids``.
            tower_features: See :meth:`get_image_features`.
            mm_encoder_outputs: ``{"image": get_image_features(...)}`` instead of pixels.
            **kwargs: Handed to the language model.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        features = (mm_encoder_outputs or {}).get("image")
        if features is not None and pixel_values is not None:
            raise ValueError("pass either pixel_values or mm_encoder_outputs['image'], not both")
        if features is None and (pixel_values is not None or tower_features is not None):
            features = self.get_image_features(pixel_values, view_table, tower_features)
        token_map = None
        if features is not None:
            inputs_embeds, token_map = self.scatter(
                input_ids, inputs_embeds, attention_mask, features
            )
        kwargs.pop("return_dict", None)
        call = {
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "inputs_embeds": inputs_embeds,
            **kwargs,
        }
        outputs: BaseModelOutputWithPast
        if len(self.stack):
            side = features.side if features is not None else None
            outputs = run_decoder(
                self.language_model, stack=self.stack, token_map=token_map, side=side, **call
            )
        else:
            outputs = self.language_model(**call)
        return VistokenModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            token_map=token_map,
        )


class VistokenForConditionalGeneration(VistokenPreTrainedModel, GenerationMixin):
    """The vision-language model with its language-modelling head."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: VistokenConfig) -> None:
        super().__init__(config)
        self.model = VistokenModel(config)
        text = config.text_config
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_pretrained(cls, source: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a full checkpoint, or compose a light one; strict in both cases.

        Args:
            source: Directory or hub id.
            *args: As in ``PreTrainedModel.from_pretrained``.
            **kwargs: As in ``PreTrainedModel.from_pretrained``; a light checkpoint takes ``dtype``.

        Raises:
            WeightsError: A tensor is missing or unexpected, or a reference does not resolve.
        """
        from vistoken.models.loading import load_strictly

        return load_strictly(super().from_pretrained, source, args, kwargs)

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
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        hidden = outputs.last_hidden_state[:, kept, :]
        logits = self.lm_head(hidden)
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits,
                labels=labels,
                vocab_size=self.config.text_config.vocab_size,
                **kwargs,
            )
        return VistokenCausalLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            token_map=outputs.token_map,
        )

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
            token_map=[
                TOKEN.set(features.token_map[i], media=n)
                for n, i in enumerate(order)
                if features.token_map is not None
            ],
            side={k: [v[i] for i in order] for k, v in (features.side or {}).items()},
        )
        return {**mm_encoder_output, "image": repeated}


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
