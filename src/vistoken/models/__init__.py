"""The Hugging Face model; importing this package registers it with the Auto classes."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
)

from vistoken.models.configuration import VistokenConfig, VistokenVisionConfig
from vistoken.models.image_processing import VistokenImageProcessor
from vistoken.models.modeling import VistokenForConditionalGeneration, VistokenModel
from vistoken.models.processing import VistokenProcessor
from vistoken.models.towers import register_towers

__all__ = [
    "VistokenConfig",
    "VistokenForConditionalGeneration",
    "VistokenImageProcessor",
    "VistokenModel",
    "VistokenProcessor",
    "VistokenVisionConfig",
]

register_towers()
AutoConfig.register("vistoken", VistokenConfig)
AutoConfig.register("vistoken_vision", VistokenVisionConfig)
AutoModel.register(VistokenConfig, VistokenModel)
AutoModelForImageTextToText.register(VistokenConfig, VistokenForConditionalGeneration)
AutoImageProcessor.register(VistokenConfig, image_processor_classes={"pil": VistokenImageProcessor})
AutoProcessor.register(VistokenConfig, VistokenProcessor)
