"""What decoder mechanisms report of themselves, averaged over a log interval."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

PREFIX = "mechanisms/"
"""In front of every name in the metrics, so that no mechanism hides a metric of training."""


class MechanismMeans:
    """Means of the entries of ``aux``: losses and statistics, by ``<mechanism>/<what>``.

    A tensor with several elements counts as their mean. Sums stay on their device until they are
    read: a step does not wait for them.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, aux: Mapping[str, Tensor]) -> None:
        """Count what one call of the decoder left."""
        for name, value in aux.items():
            mean = value.detach().float().mean()
            known = self._sums.get(name)
            self._sums[name] = mean if known is None else known + mean
            self._counts[name] = self._counts.get(name, 0) + 1

    def read(self) -> dict[str, float]:
        """The means as ``mechanisms/<mechanism>/<what>``; begins again."""
        means = {PREFIX + n: float(s) / self._counts[n] for n, s in sorted(self._sums.items())}
        self._sums.clear()
        self._counts.clear()
        return means
