"""Configuration of the vistoken model: towers, connector chain, layout, decoder, language model."""

from __future__ import annotations

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from vistoken.core.errors import UsageError, did_you_mean
from vistoken.models.encoder import FeatureLayer
from vistoken.models.pipeline import PartSpec, PipelineSpec, TowerSpec

_TOWER_KEYS = ("config", "feature_layer")


@strict
class VistokenVisionConfig(PreTrainedConfig):
    """The vision towers.

    Args:
        towers: One dictionary per tower: ``config`` (a Hugging Face vision config as a dictionary
            with ``model_type``), ``feature_layer`` (index or indices into the hidden states) and
            the fields of :class:`~vistoken.models.pipeline.TowerSpec`.
        micro_batch: Most views in one pass of a tower, for pictures of many views on little
            memory; the features are the same. None takes all views of one shape at once.
    """

    model_type = "vistoken_vision"

    towers: list[dict[str, Any]] | None = None
    micro_batch: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.towers = self.towers or []
        if self.micro_batch is not None and self.micro_batch < 1:
            raise UsageError(f"micro_batch must be at least 1, got {self.micro_batch}")
        super().__post_init__(**kwargs)

    def specs(self) -> tuple[TowerSpec, ...]:
        """Geometry of each tower."""
        return tuple(
            TowerSpec(**{k: v for k, v in tower.items() if k not in _TOWER_KEYS})
            for tower in self.towers or []
        )

    def tower_configs(self) -> list[PreTrainedConfig]:
        """Hugging Face config of each tower."""
        return [config_from_dict(tower["config"], "vision tower") for tower in self.towers or []]

    def feature_layers(self) -> list[FeatureLayer]:
        """Feature layer(s) of each tower."""
        return [tower["feature_layer"] for tower in self.towers or []]


@strict
class VistokenConfig(PreTrainedConfig):
    """Configuration of :class:`~vistoken.models.modeling.VistokenForConditionalGeneration`.

    Args:
        vision_config: The towers.
        connector_config: The connector chain, a list of part specs.
        layout_config: The layout's part spec.
        decoder_config: ``mechanisms``, a list of part specs.
        text_config: Config of the language model.
        image_token_id: Id of the image placeholder (one appended row, never trained).
    """

    model_type = "vistoken"
    has_no_defaults_at_init = True
    sub_configs: ClassVar[dict[str, type]] = {
        "vision_config": VistokenVisionConfig,
        "text_config": AutoConfig,
    }

    # Sub-configs arrive as objects or dictionaries and are objects after __post_init__.
    vision_config: Any = None
    connector_config: list[Any] | None = None
    layout_config: Any = None
    decoder_config: Any = None
    text_config: Any = None
    image_token_id: int = 32000
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.vision_config, PreTrainedConfig):
            values = {k: v for k, v in (self.vision_config or {}).items() if k != "model_type"}
            self.vision_config = VistokenVisionConfig(**values)
        if not isinstance(self.text_config, PreTrainedConfig):
            self.text_config = config_from_dict(self.text_config or {}, "text_config")
        self.connector_config = self.connector_config or [{"part": "mlp", "options": {}}]
        self.layout_config = self.layout_config or {"part": "plain", "options": {}}
        self.decoder_config = self.decoder_config or {"mechanisms": []}
        self.tie_word_embeddings = bool(self.text_config.tie_word_embeddings)
        super().__post_init__(**kwargs)

    def pipeline(self) -> PipelineSpec:
        """The token-relevant part of this config (views live with the processor)."""
        return PipelineSpec(
            towers=self.vision_config.specs(),
            connector=tuple(PartSpec.read(s, "connector") for s in self.connector_config or []),
            layout=PartSpec.read(self.layout_config or "plain", "layout"),
            text_width=self.text_config.hidden_size,
        )


def config_from_dict(values: dict[str, Any], where: str) -> PreTrainedConfig:
    """Build a Hugging Face config from a dictionary with ``model_type``.

    Raises:
        UsageError: No or unknown ``model_type``.
    """
    # importing registers the house towers with the Auto classes
    from vistoken.models.towers import register_towers

    register_towers()
    values = dict(values)
    model_type = values.pop("model_type", None)
    if model_type is None:
        raise UsageError(f"{where} needs a 'model_type', such as 'llama' or 'clip_vision_model'")
    if model_type not in CONFIG_MAPPING:
        raise UsageError(
            f"{where}: transformers knows no model_type {model_type!r}, "
            + did_you_mean(model_type, CONFIG_MAPPING.keys())
        )
    config: PreTrainedConfig = CONFIG_MAPPING[model_type](**values)
    return config
