"""The model without its head: vision towers -> connector -> layout -> scatter -> language model."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

from vistoken.core.errors import UsageError
from vistoken.core.parts import ConnectorState
from vistoken.core.tables import TOKEN, VIEW, split_media
from vistoken.models.configuration import VistokenConfig
from vistoken.models.decoder import MechanismContext, build_stack, run_decoder
from vistoken.models.decoder.families import KERNELS_REFUSED, check_own_modules
from vistoken.models.encoder import encode_views
from vistoken.models.outputs import ImageFeatures, VistokenModelOutput
from vistoken.models.pipeline import TokenPlan, anchor_rows
from vistoken.models.room import Room
from vistoken.models.scatter import (
    batch_token_map,
    fitting_text_map,
    placeholder_mask,
    scatter_rows,
    slot_features,
)

_FEWER_VIEWS = (
    "have it cut into fewer or smaller views (vistoken inspect tokens names the options that do so)"
)


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
    has_hub_kernels = False

    @classmethod
    def from_pretrained(cls, source: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a full checkpoint, or compose a light one; strict in both cases.

        Args:
            source: Directory or hub id.
            *args: As in ``PreTrainedModel.from_pretrained``.
            **kwargs: As in ``PreTrainedModel.from_pretrained``; a light checkpoint takes ``dtype``
                and a single device as ``device_map``.

        Raises:
            WeightsError: A tensor is missing or unexpected, or a reference does not resolve.
        """
        from vistoken.models.loading import load_strictly

        return load_strictly(cls, super().from_pretrained, source, args, kwargs)

    def set_use_kernels(self, use_kernels: bool, *args: Any, **kwargs: Any) -> None:
        """Switch kernels from the hub on, which decoder mechanisms exclude.

        Args:
            use_kernels: Whether to.
            *args: As in ``PreTrainedModel``.
            **kwargs: As in ``PreTrainedModel``.

        Raises:
            UsageError: The model has decoder mechanisms.
        """
        inner: Any = self.base_model
        if use_kernels and len(inner.stack):
            raise UsageError(KERNELS_REFUSED)
        super().set_use_kernels(use_kernels, *args, **kwargs)
        inner.has_hub_kernels |= use_kernels  # there is no way back from them

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
        self.build_mechanisms()
        self.post_init()

    def build_mechanisms(self, dtype: torch.dtype | None = None) -> None:
        """Make the configured decoder mechanisms, freshly initialised.

        Args:
            dtype: Floating type of their weights; PyTorch's default when None.
        """
        config = self.config
        context = MechanismContext(config.text_config, self.plan.projected_width)
        stack = build_stack(config.decoder_config["mechanisms"], context)
        if len(stack):
            check_own_modules(self)
            if self.has_hub_kernels:
                raise UsageError(KERNELS_REFUSED)
        self.stack = stack
        modules = {m.name: m for m in self.stack if isinstance(m, nn.Module)}
        if modules:
            self.mechanisms = nn.ModuleDict(modules).to(dtype)

    def get_input_embeddings(self) -> nn.Module:
        """The language model's token embedding."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's token embedding."""
        self.language_model.set_input_embeddings(value)

    @property
    def positions(self) -> int | None:
        """Positions of the language model, where its configuration names them."""
        known: int | None = self.config.text_config.to_dict().get("max_position_embeddings")
        return known

    def image_embedding(self) -> Tensor:
        """Embedding (D,) of the image placeholder."""
        embedding: Any = self.get_input_embeddings()
        row: Tensor = embedding.weight[self.config.image_token_id]
        return row

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
        vision = self.config.vision_config
        towers = list(
            zip(self.plan.spec.towers, vision.feature_layers(), self.towers(), strict=True)
        )
        return encode_views(towers, pixel_values, view_table.cpu(), vision.micro_batch)

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
            prefixes = [maps[0].new_empty(0, maps[0].shape[-1]) for maps in tower_features]
        weight = next(self.multi_modal_projector.parameters())  # towers may be of another type
        tower_features = [tuple(m.to(weight) for m in maps) for maps in tower_features]
        prefixes = [prefix.to(weight) for prefix in prefixes]
        state = ConnectorState(table, anchor_rows(table), tower_features)
        keep = "encoder_features" in self.stack.side_inputs
        state = self.multi_modal_projector(state, prefixes, keep_features=keep)
        return self._lay_out(table, state)

    def _lay_out(self, table: Tensor, state: ConnectorState) -> ImageFeatures:
        media = split_media(table)
        # a fuse stage may leave tokens to some of the anchors only
        counts = [len(self.plan.arrange(medium).counts) for medium in media]
        bounds = [0, *accumulate(counts)]
        rows: list[Tensor] = []
        maps: list[Tensor] = []
        raw = state.side.pop("encoder_features", None)
        looked_up = self._looked_up()
        features: list[Tensor] = []
        for number, medium in enumerate(media):
            tokens = state.tokens[bounds[number] : bounds[number + 1]]
            predicted = self.plan.arrange(medium)
            if tuple(len(t) for t in tokens) != predicted.counts:
                raise ValueError(
                    f"image {number}: the connector gave {[len(t) for t in tokens]} tokens per "
                    f"view where its token map predicts {list(predicted.counts)}"
                )
            rows.append(self.layout(predicted.order, tokens, looked_up))
            if raw is not None:
                views = raw[bounds[number] : bounds[number + 1]]
                features.append(slot_features(predicted, views))
            maps.append(TOKEN.set(predicted.token_map, media=number))
        side: dict[str, list[Any]] = {
            name: [values[a:b] for a, b in pairwise(bounds)] for name, values in state.side.items()
        }
        if raw is not None:
            side["encoder_features"] = features
        return ImageFeatures(pooler_output=rows, token_map=maps, side=side)

    def _looked_up(self) -> Tensor | None:
        """Embeddings (L, D) that the layout takes from the language model's table."""
        layout: Any = self.layout
        if layout.looked_up_rows == 0:
            return None
        embedding: Any = self.get_input_embeddings()
        weight: Tensor = embedding.weight
        if weight.is_meta:  # shapes are asked for, before any tokenizer gave its ids
            return weight.new_empty(layout.looked_up_rows, weight.shape[-1])
        rows: Tensor = embedding(torch.tensor(layout.vocabulary_ids(), device=weight.device))
        return rows

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

    def _refuse_unfilled(self, input_ids: Tensor) -> None:
        """Placeholders without pictures would be read as an untrained token."""
        if not torch.compiler.is_compiling() and (input_ids == self.config.image_token_id).any():
            raise ValueError(
                "the prompt has image placeholders but no images were given; pass pixel_values "
                "and view_table, tower_features or mm_encoder_outputs"
            )

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
        text_map: Tensor | None = None,
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
            text_map (Tensor): (B, n, K) int64, a TokenMap that says turn, role, sample and branch
                of every position; a position of kind PAD is padding.
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
        text_map = fitting_text_map(text_map, inputs_embeds, past_key_values)
        token_map = text_map
        room: Room | None = None  # steps behind a cached prompt are not looked at
        if features is not None:
            mask = placeholder_mask(
                input_ids, inputs_embeds, self.config.image_token_id, self.image_embedding()
            )
            room = Room(self.positions, self.plan.ways_out(_FEWER_VIEWS), mask)
            room.check_pictures(features)
            inputs_embeds = scatter_rows(mask, inputs_embeds, features)
            token_map = batch_token_map(mask, attention_mask, features, text_map)
        elif input_ids is not None and input_ids.shape[1] > 1:
            self._refuse_unfilled(input_ids)
        if len(self.stack) and features is not None and token_map is None:
            raise ValueError(
                "a decoder mechanism needs the whole prompt's token map; generate without "
                "prefill_chunk_size"
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
        rows: Tensor | None = None
        aux: dict[str, Tensor] | None = None
        if len(self.stack):
            side, aux = features.side if features is not None else None, {}
            outputs = run_decoder(
                self.language_model,
                stack=self.stack,
                token_map=token_map,
                side=side,
                aux=aux,
                check_room=None if room is None else room.check_prompts,
                **call,
            )
            rows = outputs.rows
        else:
            if room is not None:
                room.check_call(
                    inputs_embeds, attention_mask, position_ids, past_key_values, token_map
                )
            outputs = self.language_model(**call)
        return VistokenModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            token_map=token_map,
            rows=rows,
            aux=aux,
        )
