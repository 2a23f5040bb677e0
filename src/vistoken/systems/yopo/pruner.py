"""The pruner ``yopo``: calibrates a head mask and configures the mechanism, without training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from vistoken.core.errors import DataError, UsageError
from vistoken.core.pruning import Pruned, Pruner
from vistoken.models.decoder import MechanismContext
from vistoken.systems.yopo.calibration import Queries, measure
from vistoken.systems.yopo.config import Mode, YopoConfig
from vistoken.systems.yopo.heads import (
    HeadMask,
    check_size,
    check_weights,
    fingerprint_of,
    read_head_mask,
    save_head_mask,
)
from vistoken.systems.yopo.mechanism import Yopo
from vistoken.systems.yopo.selection import FIRST_CUT, choose_heads, threshold_for, vote

MASK_FILE = "yopo-heads.safetensors"
_SHARE = 6 / 7  # 24 of 28 heads and of 28 layers, the released training-free setting


@dataclass(frozen=True)
class YopoPrunerConfig:
    """Options of ``vistoken prune --method yopo``.

    Args:
        heads: Wanted mean number of heads per layer that compute for visual tokens, over the
            layers from 2 on; 6/7 of them if neither this nor ``threshold`` nor ``mask`` is given.
        threshold: Instead: keep heads whose visual attention over text attention exceeds this.
        majority: Share of the samples on which a head must exceed it.
        queries: ``all`` rows of the prompt count, or the ``last``.
        mask: Instead of calibrating: a head mask file, ``.safetensors`` or a released ``.npy``.
        mode: See :class:`~vistoken.systems.yopo.config.YopoConfig`.
        layer_cut: First layer without visual computation; 6/7 of the layers if not given.
        window: Side of the window of neighbours; not in mode training_free.
        causal_local: Hide later neighbours.
        mlp_ratio: Divisor of the feed-forward channels; not in mode training_free.
        kinds: Kinds of tokens that count as visual.
    """

    heads: float | None = None
    threshold: float | None = None
    majority: float = 0.5
    queries: Queries = "all"
    mask: str | None = None
    mode: Mode = "training_free"
    layer_cut: int | None = None
    window: int | None = None
    causal_local: bool = False
    mlp_ratio: int = 1
    kinds: tuple[str, ...] = ("visual", "thumbnail")

    def __post_init__(self) -> None:
        chosen = [n for n in ("heads", "threshold", "mask") if getattr(self, n) is not None]
        if len(chosen) > 1:
            raise ValueError(f"give one of heads, threshold and mask, not {' and '.join(chosen)}")
        if self.queries not in get_args(Queries):
            raise ValueError(f"queries must be all or last, got {self.queries!r}")
        if not 0 <= self.majority < 1:
            raise ValueError(f"majority must be at least 0 and below 1, got {self.majority}")
        if self.threshold is not None and self.threshold < 0:
            raise ValueError(f"threshold must be at least 0, got {self.threshold}")

    def mechanism(self, layers: int, head_keep: tuple[str, ...] | None) -> YopoConfig:
        """Options of the mechanism in a language model of so many layers."""
        cut = round(_SHARE * layers) if self.layer_cut is None else self.layer_cut
        return YopoConfig(
            mode=self.mode,
            window=self.window,
            causal_local=self.causal_local,
            layer_cut=cut,
            head_keep=head_keep,
            mlp_ratio=self.mlp_ratio,
            kinds=self.kinds,
        )


class YopoPruner(Pruner):
    """Chooses the heads that compute for visual tokens.

    Source: arXiv 2410.06169 and its head mask scripts; majority, threshold and counting are
    options here, and every visual column counts, wherever the picture stands.
    """

    config_class = YopoPrunerConfig
    needs = frozenset({"activations"})
    changes_weights = False

    def __init__(self, config: YopoPrunerConfig, text_config: Any) -> None:
        super().__init__(config, text_config)
        self._ratios: list[Tensor] = []
        self._layers: int = text_config.num_hidden_layers
        self._heads: int = text_config.num_attention_heads
        try:
            self._configured(None)
        except ValueError as error:
            raise UsageError(f"prune method 'yopo': {error}") from error
        self._given: HeadMask | None = None
        if config.mask is not None:
            self._given = read_head_mask(Path(config.mask))
            check_size(self._given, text_config, self._where)
        elif config.threshold is None:
            # refuses a target that no mask meets before anything is measured
            threshold_for(torch.zeros(self._layers, self._heads), self._target)

    @property
    def wants_samples(self) -> bool:
        """Only where no mask is given."""
        return self.config.mask is None

    def observe(self, model: Any, inputs: Mapping[str, Any]) -> bool:
        """Measure the heads on one prompt."""
        kinds = YopoConfig(kinds=self.config.kinds).token_kinds
        ratios = measure(model, inputs, kinds, self.config.queries)
        if ratios is None:
            return False
        self._ratios.append(ratios)
        return True

    def finish(self, model: Any) -> Pruned:
        """Choose the heads and configure the mechanism.

        Raises:
            DataError: No sample was seen and no mask is given.
            WeightsError: The given mask belongs to another model.
        """
        language_model = model.model.language_model
        if self._given is None:
            mask = self._choose(fingerprint_of(language_model))
        else:
            mask = self._given
            check_weights(mask, language_model, self._where)
        options = self._configured(mask.digits()).options()
        kept = mask.keep.sum(dim=1).tolist()
        summary = {
            **mask.details,
            "options": {k: v for k, v in options.items() if k != "head_keep"},
            "heads_kept": kept,
            "mean_heads": sum(kept[FIRST_CUT:]) / max(1, len(kept) - FIRST_CUT),
            "heads": self._heads,
            "head_keep": list(mask.digits()),
        }
        return Pruned(
            mechanisms=({"part": "yopo", "options": options},),
            files={MASK_FILE: lambda path: save_head_mask(mask, path)},
            summary=summary,
        )

    @property
    def _where(self) -> str:
        return f"head mask {self.config.mask}"

    @property
    def _target(self) -> float:
        return _SHARE * self._heads if self.config.heads is None else self.config.heads

    def _choose(self, fingerprint: str) -> HeadMask:
        if not self._ratios:
            raise DataError("yopo has seen no sample with a picture; give it calibration data")
        statistic = vote(torch.stack(self._ratios), self.config.majority)
        threshold = self.config.threshold
        if threshold is None:
            threshold = threshold_for(statistic, self._target)
        details = {
            "samples": str(len(self._ratios)),
            "threshold": repr(float(threshold)),
            "majority": repr(float(self.config.majority)),
            "queries": self.config.queries,
        }
        return HeadMask(choose_heads(statistic, threshold), statistic, fingerprint, details)

    def _configured(self, head_keep: tuple[str, ...] | None) -> YopoConfig:
        """Options of the mechanism, tried on the language model."""
        config: YopoConfig = self.config.mechanism(self._layers, head_keep)
        Yopo(config, MechanismContext(self.text_config, feature_width=0))
        return config
