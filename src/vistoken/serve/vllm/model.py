"""Our model inside vLLM, on its Transformers backend; imported by vLLM only.

The backend does the work. What is ours: an image's views stay together whatever their sizes, the
largest image is looked for at several shapes, and the placeholder is never an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.model_executor.models.transformers import (
    MultiModalDummyInputsBuilder,
    MultiModalProcessingInfo,
    MultiModalProcessor,
    TransformersMultiModalForCausalLM,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.parse import ImageSize

from vistoken.core.tables import split_media
from vistoken.serve.vllm.images import largest_size, stacked, views_by_image
from vistoken.serve.vllm.refusals import refuse_for_vllm


class VistokenProcessingInfo(MultiModalProcessingInfo):
    """What vLLM must know of images before any is there."""

    def get_image_size_with_most_features(self) -> ImageSize:
        """The image that fills the encoder's budget."""
        height, width = largest_size(self.get_hf_processor().image_processor)
        return ImageSize(width=width, height=height)


class VistokenMultiModalProcessor(MultiModalProcessor):
    """Cuts what our processor gives into one entry per image."""

    def _get_num_image_patches(
        self, hf_inputs: Mapping[str, Any], mm_data: Mapping[str, object], num_images: int
    ) -> Tensor:
        return torch.tensor([len(table) for table in split_media(hf_inputs["view_table"])])

    def _postprocess_hf_mm_data(
        self,
        mm_inputs: Mapping[str, object],
        hf_processor_mm_kwargs: Mapping[str, object],
        processed_data: Any,
    ) -> Any:
        if "pixel_values" in processed_data:
            # a list has one entry per image here; pixels of two images may differ in size
            processed_data["pixel_values"] = views_by_image(
                processed_data["pixel_values"], processed_data["view_table"]
            )
        return processed_data


@MULTIMODAL_REGISTRY.register_processor(
    VistokenMultiModalProcessor,
    info=VistokenProcessingInfo,
    dummy_inputs=MultiModalDummyInputsBuilder,
)
class VistokenForVllm(TransformersMultiModalForCausalLM):
    """The model as vLLM runs it: its own attention, cache and parallel layers."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        config = vllm_config.model_config.hf_config
        refuse_for_vllm(config, None, vllm_config.model_config.model)
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self._place_buffers()

    def _place_buffers(self) -> None:
        """Give memory to stored buffers that were made where the weights were: nowhere.

        vLLM builds weights on the meta device and buffers for real, except those that follow a
        weight's device; their values come with the checkpoint.
        """
        for module in self.model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.is_meta and name not in module._non_persistent_buffers_set:
                    place = self.device_config.device
                    module._buffers[name] = torch.empty_like(buffer, device=place)

    def _process_image_input(self, **kwargs: Any) -> list[Tensor] | None:
        """Visual tokens of each image."""
        pixels = kwargs.get("pixel_values")
        if pixels is None:
            return None
        # sizes and places are read on the CPU
        table = kwargs["view_table"].cpu()
        features = self.model.get_image_features(stacked(pixels), table)
        return list(features.pooler_output)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Logits in which the image placeholder cannot win."""
        logits: Tensor | None = super().compute_logits(hidden_states)
        if logits is not None:
            logits[..., self.config.image_token_id] = -torch.inf
        return logits
