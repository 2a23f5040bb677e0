"""Everything that is wrong with a data file, told sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from vistoken.core.errors import DataError, UsageError
from vistoken.data.check_report import CheckReport, Fault, Repeat
from vistoken.data.forms import Form, form_of
from vistoken.data.image_roots import Missing, wrong_root
from vistoken.data.labels import IGNORE_LABEL, EncodedConversation, encode_conversation
from vistoken.data.parts_of_message import video_places
from vistoken.data.reading import open_rows
from vistoken.data.repeated_marks import repeated_marks
from vistoken.data.rows import RowAt
from vistoken.data.sampling import modality_length
from vistoken.data.schema import (
    FaultKind,
    Message,
    SampleFault,
    image_paths,
    is_picture_file,
    name_sample,
)
from vistoken.data.string_table import StringTable
from vistoken.models.images import open_image
from vistoken.models.unread_parts import refuse_unread_parts

__all__ = ["CheckReport", "Encode", "Fault", "ProcessorEncode", "Size", "check_file"]

Size = tuple[int, int]

_WIDTHS = 1 << 31
"""More than any picture's width, so that height and width go into one number."""
_FAULTY = 0
"""Instead of the size of a picture that cannot be used."""


class Encode(Protocol):
    """Gives a conversation's tokens and labels."""

    def __call__(
        self, messages: Sequence[Message], sizes: Sequence[Size], where: str
    ) -> EncodedConversation:
        """Encode messages with pictures of these sizes (height, width)."""


@dataclass(frozen=True)
class ProcessorEncode:
    """Tokens and labels of a model's processor, without its weights.

    Args:
        processor: A `VistokenProcessor`.
        template: Text of the chat template; the processor's own when None.

    Raises:
        UsageError: There is no chat template.
    """

    processor: Any
    template: str | None = None

    def __post_init__(self) -> None:
        """Refuse a processor without a template before any sample is read."""
        if self.template is None and self.processor.chat_template is None:
            raise UsageError("the model has no chat template; name one")

    def __call__(
        self, messages: Sequence[Message], sizes: Sequence[Size], where: str
    ) -> EncodedConversation:
        """See :class:`Encode`."""
        images = self.processor.image_processor
        return encode_conversation(
            self.processor.tokenizer,
            self.template or str(self.processor.chat_template),
            messages,
            [len(images.token_map(*size)) for size in sizes],
            self.processor.image_token,
            where=where,
        )


def check_file(
    path: Path,
    image_root: Path | None = None,
    form: str = "auto",
    encode: Encode | None = None,
    max_length: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> CheckReport:
    """Look at every sample of a data file.

    Args:
        path: The file.
        image_root: Folder of the image paths; the file's own when None.
        form: `schema`, `llava`, `sharegpt`, or `auto` for that of the first row.
        encode: Tokens and labels; lengths are counted in words when None.
        max_length: Most tokens of a sample; not checked when None.
        progress: Told after each sample: done, total.

    Returns:
        All faults, counts and lengths.

    Raises:
        DataError: The file as a whole cannot be read.
    """
    rows = open_rows(path)
    chosen = form_of(rows, form)
    report = CheckReport(chosen.name, "tokens" if encode else "words")
    checker = _Checker(image_root or path.parent, chosen, encode, max_length, report)
    with rows.reader() as row_at:
        for index in range(len(rows)):
            repeats = checker.check(row_at, index, rows.where(index))
            if repeats is not None:
                first, sample = repeats
                report.add_repeat(Repeat(rows.where(index), sample, rows.where(first)))
            progress(index + 1, len(rows))
    report.images = len(checker.sizes)
    report.wrong_root = wrong_root(checker.root, path.parent, checker.missing, report.images)
    return report


@dataclass
class _Checker:
    root: Path
    form: Form
    encode: Encode | None
    max_length: int | None
    report: CheckReport
    missing: Missing = field(default_factory=Missing)
    # number of the first row with an id
    ids: StringTable = field(default_factory=StringTable)
    # a picture is decoded once however many samples ask about it
    sizes: StringTable = field(default_factory=StringTable)

    def check(self, row_at: RowAt, index: int, where: str) -> tuple[int, str] | None:
        """Look at one sample; gives the first row with its id, and the id, if there was one."""
        self.report.samples += 1
        faults: list[SampleFault] = []
        sample_id = ""
        try:
            record = row_at(index)
            sample_id = str(record.get("id", ""))
            self._look(record, where, faults)
        except DataError as error:
            faults.append(_as_fault(error))
        self.report.bad_samples += bool(faults)
        for fault in faults:
            self.report.add_fault(Fault(index, where, sample_id, fault.kind, str(fault)))
        first = self.ids.get(sample_id)
        if first is None and sample_id:
            self.ids.add(sample_id, index)
        return None if first is None else (first, sample_id)

    def _look(self, record: Mapping[str, object], where: str, faults: list[SampleFault]) -> None:
        row = self.form.read(record, where, faults.append)
        messages = cast("list[Message]", row["messages"])
        well_formed = not faults
        name = where if any(fault.kind == "id" for fault in faults) else name_sample(record, where)
        self.report.add_warnings(repeated_marks(record, name))
        paths = image_paths(messages)
        self.report.with_images += bool(paths)
        sizes = [self._size(path) for path in paths]
        for size in sizes:
            if isinstance(size, SampleFault):
                faults.append(SampleFault(size.kind, f"{name}: {size}"))
        self._find_videos(record, name, faults)
        if not any(message["role"] == "assistant" for message in messages) and well_formed:
            faults.append(
                SampleFault(
                    "unsupervised",
                    f"{name}: no answer, so nothing would be supervised; add one or leave it out",
                )
            )
        if faults or not messages:
            return
        if self.encode is None:
            self.report.lengths[abs(modality_length(messages))] += 1
            return
        try:
            refuse_unread_parts(messages, name)
        except DataError as error:
            faults.append(SampleFault("unread-part", str(error)))
            return
        known = [size for size in sizes if not isinstance(size, SampleFault)]
        self._measure(self.encode(messages, known, name), name, faults)

    def _find_videos(
        self, record: Mapping[str, object], name: str, faults: list[SampleFault]
    ) -> None:
        for place, path in video_places(record.get("messages")):
            if not is_picture_file(self.root / path):
                faults.append(
                    SampleFault(
                        "video-missing",
                        f"{name}, {place}: video {self.root / path} does not exist;"
                        " check the image root",
                    )
                )

    def _measure(self, encoded: EncodedConversation, name: str, faults: list[SampleFault]) -> None:
        length = len(encoded.input_ids)
        self.report.lengths[length] += 1
        self.report.tokens += length
        self.report.supervised += sum(label != IGNORE_LABEL for label in encoded.labels)
        if self.max_length is not None and length > self.max_length:
            faults.append(
                SampleFault(
                    "too-long",
                    f"{name}: {length} tokens, {self.max_length} fit;"
                    " shorten the conversation or raise the limit",
                )
            )

    def _size(self, path: str) -> Size | SampleFault:
        known = self.sizes.get(path)
        if known:
            return divmod(known, _WIDTHS)
        # one that cannot be used is looked at again: its fault would take more room than its size
        size = _picture_size(self.root / path)
        if known is None:
            self._keep(path, size)
        return size

    def _keep(self, path: str, size: Size | SampleFault) -> None:
        if not isinstance(size, SampleFault):
            self.sizes.add(path, size[0] * _WIDTHS + size[1])
            return
        self.sizes.add(path, _FAULTY)
        if size.kind == "image-missing":
            self.missing.add(path)


def _picture_size(path: Path) -> Size | SampleFault:
    if not is_picture_file(path):
        return SampleFault("image-missing", f"image {path} does not exist; check the image root")
    try:
        picture = open_image(path)
    except DataError as error:
        return SampleFault("image-broken", str(error))
    return picture.height, picture.width


def _as_fault(error: DataError) -> SampleFault:
    """What the encoder refuses is either unsupervised or against the template."""
    if isinstance(error, SampleFault):
        return error
    kind: FaultKind = "unsupervised" if "would be supervised" in str(error) else "template"
    return SampleFault(kind, str(error))
