"""When a stage is measured on what it does not train on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vistoken.train.settings import StageConfig

Measures = dict[str, float]


@dataclass
class HeldOut:
    """Measures of the model as it is, each taken at most once per step.

    Attributes:
        measures: By the first part of their metrics' names.
        logged: Step of the last record.
    """

    measures: Mapping[str, Callable[[], Measures]]
    logged: int = 0
    _found: dict[str, tuple[int, Measures]] = field(default_factory=dict)

    def measure(self, name: str, step: int) -> Measures:
        """Metrics of one measure; empty where it has nothing to measure on."""
        if name not in self._found or self._found[name][0] != step:
            self._found[name] = (step, self.measures[name]())
        return self._found[name][1]

    def due(self, stage: StageConfig, step: int) -> Measures:
        """Metrics of the measures whose interval ended since the last record."""
        intervals = {"retrieval": stage.retrieval_every, "val": stage.validate_every}
        metrics: Measures = {}
        for name, every in intervals.items():
            if every and step // every != self.logged // every:
                metrics |= self.measure(name, step)
        self.logged = step
        return metrics

    def find(self, metric: str, step: int) -> float | None:
        """A metric of ours by its name, measured now if need be; None where it is not ours."""
        name = metric.partition("/")[0]
        return self.measure(name, step).get(metric) if name in self.measures else None

    def forget(self) -> None:
        """Measure anew: the weights have changed within a step."""
        self._found.clear()
