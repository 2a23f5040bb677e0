"""A page that shows a data file: pictures, boxes, conversations and what of them is supervised."""

from __future__ import annotations

import base64
import html
import io
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from vistoken.core.errors import DataError
from vistoken.data.check import Encode, Size
from vistoken.data.converting import write_whole
from vistoken.data.forms import form_of
from vistoken.data.parts_of_message import describe_part
from vistoken.data.reading import open_rows
from vistoken.data.runs import label_runs
from vistoken.data.schema import Message, image_paths, name_sample, raise_fault
from vistoken.models.images import open_image
from vistoken.models.unread_parts import refuse_unread_parts

_SHOWN_SIZE = 448
_ROLES = ("template", "system", "user", "supervised")
_SPEAKERS = {"system": "system", "user": "user", "assistant": "supervised"}
_STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 1.5rem; background: #fff; color: #222; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)); gap: 1.5rem; }
figure { margin: 0; }
svg, img { width: 100%; height: auto; display: block; margin-bottom: .25rem; }
rect { fill: none; stroke: #e6007e; stroke-width: 2; }
text { font: 12px sans-serif; fill: #fff; stroke: #000; stroke-width: 3; paint-order: stroke; }
article { border-top: 1px solid #ddd; padding: .25rem 0; white-space: pre-wrap;
  overflow-wrap: anywhere; }
article header, p { color: #777; font-size: 12px; }
.template { color: #888; } .system { background: #eee3f7; } .user { background: #e3eefa; }
.supervised { background: #c9efcf; font-weight: 600; } .visual { background: #fbe9b7; }
"""


_Named = tuple[str, Sequence[float]]


class Decode(Protocol):
    """Gives the text of token ids."""

    def __call__(self, ids: Sequence[int], /) -> str:
        """Decode ids."""


@dataclass(frozen=True)
class MaskView:
    """How token-level masks are made and shown.

    Args:
        encode: Tokens and labels of a conversation.
        decode: Text of token ids.
    """

    encode: Encode
    decode: Decode


@dataclass(frozen=True, slots=True)
class _Sample:
    name: str
    kind: str
    messages: list[Message]
    images: tuple[str, ...]


def preview_page(
    rows_file: Path,
    out_html: Path,
    limit: int,
    image_root: Path | None = None,
    form: str = "auto",
    masks: MaskView | None = None,
) -> None:
    """Write a self-contained page with the first samples of a data file.

    Neighbouring samples about the same pictures stand under them together.

    Args:
        rows_file: The data file; boxes are drawn where a `.scenes.jsonl` lies beside it.
        out_html: Page to write.
        limit: Number of such groups.
        image_root: Folder of the image paths; the file's own when None.
        form: `schema`, `llava`, `sharegpt`, or `auto` for that of the first row.
        masks: Colours each token by its label; whole turns are coloured when None.

    Raises:
        DataError: A file is missing or a row breaks its form.
    """
    root = image_root or rows_file.parent
    scenes = _scenes(rows_file.with_suffix(".scenes.jsonl"))
    # A generator: a preview of a large file reads no further than it shows.
    groups = itertools.groupby(_samples(rows_file, form), key=_group_key())
    figures = [
        _figure(root, list(samples), scenes, masks)
        for _, samples in itertools.islice(groups, limit)
    ]
    title = html.escape(rows_file.name)
    legend = "".join(f'<span class="{name}">{name}</span> ' for name in (*_ROLES, "visual"))
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style><h1>{title}</h1><p>{legend}</p><main>{''.join(figures)}</main>"
        "</html>\n"
    )
    write_whole(out_html, lambda file: cast("None", file.write(page)))


def _samples(path: Path, form: str) -> Iterator[_Sample]:
    rows = open_rows(path)
    chosen = form_of(rows, form)
    for index in range(len(rows)):
        record, where = rows[index], rows.where(index)
        row = chosen.read(record, where, raise_fault)
        messages = cast("list[Message]", row["messages"])
        images = tuple(image_paths(messages))
        yield _Sample(name_sample(row, where), str(row.get("kind", "")), messages, images)


def _group_key() -> Any:
    """Pictures of a sample; samples without one stay apart."""
    numbers = itertools.count()
    return lambda sample: sample.images or next(numbers)


def _scenes(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    return {scene["image"]: scene for scene in open_rows(path)}


def _figure(
    root: Path,
    samples: list[_Sample],
    scenes: dict[str, dict[str, Any]],
    masks: MaskView | None,
) -> str:
    pictures: list[str] = []
    sizes: list[Size] = []
    for image in samples[0].images:
        picture = open_image(root / image, where=samples[0].name)
        sizes.append((picture.height, picture.width))
        picture.thumbnail((_SHOWN_SIZE, _SHOWN_SIZE))
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=85)
        link = f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
        boxes = [box for sample in samples for box in _boxes(sample, len(pictures))]
        pictures.append(_picture(link, image, sizes[-1], scenes.get(image), boxes))
    articles = "".join(_article(sample, sizes, masks) for sample in samples)
    return f"<figure>{''.join(pictures)}{articles}</figure>"


def _article(sample: _Sample, sizes: Sequence[Size], masks: MaskView | None) -> str:
    share = "" if masks is None else _unread(sample)
    if masks is None or share:
        body = "\n".join(
            _span(_SPEAKERS[message["role"]], _words(message)) for message in sample.messages
        )
    else:
        share, body = _tokens(sample, sizes, masks)
    header = html.escape(" · ".join(filter(None, (sample.name, sample.kind, share))))
    return f"<article><header>{header}</header>{body}</article>"


def _tokens(sample: _Sample, sizes: Sequence[Size], masks: MaskView) -> tuple[str, str]:
    encoded = masks.encode(sample.messages, sizes, sample.name)
    spans: list[str] = []
    supervised = 0
    for run in label_runs(encoded):
        if run.picture is not None:
            spans.append(_span("visual", f"[{run.stop - run.start} visual tokens]"))
            continue
        role = _ROLES[run.role]
        supervised += (run.stop - run.start) * (role == "supervised")
        spans.append(_span(role, masks.decode(encoded.input_ids[run.start : run.stop])))
    return f"{len(encoded.input_ids)} tokens, {supervised} supervised", "".join(spans)


def _unread(sample: _Sample) -> str:
    """Why a sample has no tokens; empty where it has."""
    try:
        refuse_unread_parts(sample.messages)
    except DataError as error:
        return f"no tokens: {error}"
    return ""


def _words(message: Message) -> str:
    """What a message says besides its pictures, which stand above."""
    return "\n".join(describe_part(part) for part in message["content"] if part["type"] != "image")


def _boxes(sample: _Sample, picture: int) -> list[_Named]:
    """Boxes of a sample on one of its pictures, each named by its sample."""
    return [
        (sample.name.rpartition(": ")[2], part["box"])
        for message in sample.messages
        for part in message["content"]
        if part["type"] == "box" and part.get("image", 0) == picture
    ]


def _span(name: str, text: str) -> str:
    return f'<span class="{name}">{html.escape(text)}</span>'


def _picture(
    link: str, image: str, size: Size, scene: dict[str, Any] | None, boxes: list[_Named]
) -> str:
    if scene is None and not boxes:
        return f'<img src="{link}" alt="{html.escape(image)}">'
    height, width = size
    named = [*boxes, *(_things(scene) if scene is not None else [])]
    marks = "".join(
        f'<rect x="{left}" y="{top}" width="{right - left}" height="{bottom - top}"/>'
        f'<text x="{left + 3}" y="{top + 14}">{html.escape(name)}</text>'
        for name, (top, left, bottom, right) in named
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(image)}">'
        f'<image href="{link}" width="{width}" height="{height}"/>{marks}</svg>'
    )


def _things(scene: dict[str, Any]) -> list[_Named]:
    """What a scene's annotation names, and its boxes."""
    named: list[_Named] = [(thing["name"], thing["box"]) for thing in scene["objects"]]
    if scene["text"] is not None:
        named.append((json.dumps(scene["text"]["word"]), scene["text"]["box"]))
    return named
