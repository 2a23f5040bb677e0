"""What a check of a data file found: faults by sample, counts, lengths."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from vistoken.data.schema import FaultKind

_KEPT_FAULTS = 10_000
_KEPT_REPEATS = 100


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with one sample.

    Attributes:
        index: Number of the sample in the file, from 0.
        where: File and line, or number in the list.
        id: The sample's id, empty where it has none.
        kind: What sort of fault it is.
        message: One sentence with place and fix.
    """

    index: int
    where: str
    id: str
    kind: FaultKind
    message: str


@dataclass(frozen=True, slots=True)
class Repeat:
    """A sample whose id stood in the file before.

    Attributes:
        where: File and line, or number in the list.
        id: The id.
        first: Place of the first sample with this id.
    """

    where: str
    id: str
    first: str


@dataclass
class CheckReport:
    """What a check found.

    Attributes:
        form: Form the file is written in.
        samples: Samples looked at.
        bad_samples: Samples with at least one fault.
        with_images: Samples with a picture.
        images: Picture files, each counted once.
        repeated_ids: Samples whose id stood in the file before; no fault, as released files do so.
        repeats: The first hundred of them.
        warnings: Samples that are read otherwise than they may be meant; no fault.
        warned: The first hundred warnings.
        wrong_root: One sentence where hardly any picture lies under the image root.
        kinds: Number of faults by kind.
        faults: The first ten thousand faults.
        lengths: Length of every sample that could be measured.
        unit: What lengths count: `tokens`, or `words` without a model.
        tokens: Tokens over all measured samples, 0 without a model.
        supervised: Supervised tokens among them.
    """

    form: str
    unit: str
    samples: int = 0
    bad_samples: int = 0
    with_images: int = 0
    images: int = 0
    repeated_ids: int = 0
    repeats: list[Repeat] = field(default_factory=list)
    warnings: int = 0
    warned: list[str] = field(default_factory=list)
    wrong_root: str | None = None
    kinds: Counter[str] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)
    lengths: Counter[int] = field(default_factory=Counter)
    tokens: int = 0
    supervised: int = 0

    def add_fault(self, fault: Fault) -> None:
        """Count a fault, and keep it while there are few."""
        self.kinds[fault.kind] += 1
        if len(self.faults) < _KEPT_FAULTS:
            self.faults.append(fault)

    def add_repeat(self, repeat: Repeat) -> None:
        """Count a sample whose id an earlier one has."""
        self.repeated_ids += 1
        if len(self.repeats) < _KEPT_REPEATS:
            self.repeats.append(repeat)

    def add_warnings(self, messages: list[str]) -> None:
        """Count a sample that has warnings, and keep them while there are few."""
        self.warnings += bool(messages)
        self.warned += messages[: _KEPT_REPEATS - len(self.warned)]

    @property
    def supervised_share(self) -> float | None:
        """Share of supervised tokens; None without a model."""
        return self.supervised / self.tokens if self.tokens else None

    def histogram(self, bins: int = 10) -> list[tuple[int, int, int]]:
        """Samples by length.

        Args:
            bins: Most rows of the histogram.

        Returns:
            Per row the shortest and longest length and the number of samples.
        """
        if not self.lengths:
            return []
        low, high = min(self.lengths), max(self.lengths)
        width = max(1, -(-(high - low + 1) // bins))
        rows = [(start, start + width - 1) for start in range(low, high + 1, width)]
        counts: Counter[int] = Counter()
        for length, count in self.lengths.items():
            counts[(length - low) // width] += count
        return [(start, stop, counts[number]) for number, (start, stop) in enumerate(rows)]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON."""
        return {
            "form": self.form,
            "samples": self.samples,
            "bad_samples": self.bad_samples,
            "with_images": self.with_images,
            "images": self.images,
            "repeated_ids": self.repeated_ids,
            "repeats": [asdict(repeat) for repeat in self.repeats],
            "warnings": self.warnings,
            "warned": self.warned,
            "wrong_root": self.wrong_root,
            "faults_by_kind": dict(sorted(self.kinds.items())),
            "faults": [asdict(fault) for fault in self.faults],
            "length_unit": self.unit,
            "lengths": [
                {"from": start, "to": stop, "samples": count}
                for start, stop, count in self.histogram()
            ],
            "tokens": self.tokens,
            "supervised_tokens": self.supervised,
            "supervised_share": self.supervised_share,
        }
