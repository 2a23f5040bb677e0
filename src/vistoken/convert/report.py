"""What a conversion does to every tensor, as a table and as JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

UNUSED = "unused"


@dataclass(frozen=True)
class Row:
    """One tensor of a release.

    Args:
        file: Name of the file it stands in.
        key: Its key there.
        shape: Its shape.
        use: What it becomes part of, or ``unused``.
        target: Its name in our model; empty when unused.
        note: Why it is unused, or what is done to it.
    """

    file: str
    key: str
    shape: tuple[int, ...]
    use: str
    target: str = ""
    note: str = ""


@dataclass(frozen=True)
class ConversionReport:
    """What was converted, or what a dry run would convert.

    Args:
        source: The foreign checkpoint.
        out: Where the result is, or would be.
        kind: Layout of the source: ``lora``, ``connector``, ``merged`` or ``llava-hf``.
        result: ``full`` or ``light``.
        connector: The connector chain by its parts' names, with the variant; then the decoder's
            mechanisms.
        views: View function.
        layout: Layout.
        template: Chat template.
        base: The language model it builds on; None when the source contains it.
        vision_tower: The vision tower it builds on; None when the source contains it.
        rows: Every tensor of the source.
        written: False for a dry run.
    """

    source: Path
    out: Path
    kind: str
    result: str
    connector: str
    views: str
    layout: str
    template: str
    base: Path | None
    vision_tower: Path | None
    rows: list[Row] = field(default_factory=list)
    written: bool = False

    @property
    def counts(self) -> dict[str, int]:
        """Number of tensors by use."""
        return dict(Counter(row.use for row in self.rows))

    def summary(self) -> str:
        """One line: what became what."""
        parts = ", ".join(f"{count} {use}" for use, count in self.counts.items())
        verb = "converted" if self.written else "would convert"
        return (
            f"{verb} {self.source} ({self.kind}, {self.connector}) to {self.out} ({self.result}): "
            f"{len(self.rows)} tensors, {parts}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON-ready form."""
        values = asdict(self)
        for name in ("source", "out", "base", "vision_tower"):
            values[name] = None if values[name] is None else str(values[name])
        return {**values, "counts": self.counts}
