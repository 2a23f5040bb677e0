"""The forms a data file may be written in, each with a way to the schema and a way from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, cast

from vistoken.core.errors import DataError, UsageError, did_you_mean
from vistoken.data.parts_of_message import describe_part
from vistoken.data.reading import Rows
from vistoken.data.schema import Message, Report, Role, name_sample, read_messages
from vistoken.data.turns import from_llava, from_sharegpt
from vistoken.models.templates import IMAGE_MARK

FormName = Literal["schema", "llava", "sharegpt"]
_SPEAKERS: dict[Role, str] = {"system": "system", "user": "human", "assistant": "gpt"}


@dataclass(frozen=True, slots=True)
class Form:
    """One way of writing a conversation as a JSON object.

    Attributes:
        name: What the command line calls it.
        turns_key: Key of the list of turns.
        read: A record of this form as a row of the schema.
        write: A row of the schema as a record of this form.
    """

    name: FormName
    turns_key: str
    read: Callable[[Mapping[str, object], str, Report], dict[str, object]]
    write: Callable[[Mapping[str, object], str], dict[str, object]]


def form_names() -> tuple[str, ...]:
    """Names of the forms."""
    return tuple(_FORMS)


def named_form(name: str) -> Form:
    """A form by its name.

    Raises:
        UsageError: There is no such form.
    """
    if name not in _FORMS:
        raise UsageError(f"unknown form {name!r}; {did_you_mean(name, _FORMS)}")
    return _FORMS[name]


def detect_form(record: Mapping[str, object], where: str) -> Form:
    """The form a record is written in.

    Raises:
        DataError: It has neither `messages` nor `conversations`.
    """
    if "messages" in record:
        return _FORMS["schema"]
    turns = record.get("conversations")
    if "conversations" not in record:
        raise DataError(
            f"{where}: neither 'messages' nor 'conversations'; name the form of the file,"
            f" one of {', '.join(_FORMS)}"
        )
    speakers = {
        str(cast("Mapping[str, object]", turn).get("from"))
        for turn in (cast("list[object]", turns) if isinstance(turns, list) else [])
        if isinstance(turn, Mapping)
    }
    other_names = speakers & {"user", "assistant", "chatgpt", "bing", "bard", "system"}
    return _FORMS["sharegpt" if "images" in record or other_names else "llava"]


def form_of(rows: Rows, name: str) -> Form:
    """The form of a file: by name, or for `auto` that of the first row which shows one.

    Raises:
        DataError: None of the first hundred rows does.
        UsageError: There is no such form.
    """
    if name != "auto":
        return named_form(name)
    refusals: list[DataError] = []
    for index in range(min(len(rows), 100)):
        try:
            return detect_form(rows[index], rows.where(index))
        except DataError as error:
            refusals.append(error)
    raise refusals[0]


def _read_schema(record: Mapping[str, object], where: str, report: Report) -> dict[str, object]:
    """The row, its messages in one shape, further keys of a message kept."""
    messages = read_messages(record, where, report)
    given = record.get("messages")
    if isinstance(given, list) and len(given) == len(messages):
        pairs = zip(cast("list[dict[str, object]]", given), messages, strict=True)
        messages = [cast("Message", {**old, **new}) for old, new in pairs]
    return {**record, "messages": messages}


def _write_schema(row: Mapping[str, object], where: str) -> dict[str, object]:
    return dict(row)


def _write_llava(row: Mapping[str, object], where: str) -> dict[str, object]:
    """A system text has no turn in this form and becomes a key of the record."""
    record, turns = _write_turns(row, where)
    for turn in turns:
        if turn["from"] == "system":
            record["system"] = turn["value"]
    images = cast("list[str]", record.pop("images"))
    if images:
        record["image"] = images[0] if len(images) == 1 else images
    return {**record, "conversations": [turn for turn in turns if turn["from"] != "system"]}


def _write_sharegpt(row: Mapping[str, object], where: str) -> dict[str, object]:
    """A further key `system` is left out: readers of this form would take it for what was said."""
    record, turns = _write_turns(row, where)
    record.pop("system", None)
    if not record["images"]:
        del record["images"]
    return {**record, "conversations": turns}


def _write_turns(
    row: Mapping[str, object], where: str
) -> tuple[dict[str, object], list[dict[str, object]]]:
    record = {key: value for key, value in row.items() if key != "messages"}
    images: list[str] = []
    turns: list[dict[str, object]] = []
    for message in cast("list[Message]", row["messages"]):
        _refuse_parts_without_a_place(message, name_sample(row, where))
        paths = [part["path"] for part in message["content"] if part["type"] == "image"]
        texts = [part["text"] for part in message["content"] if part["type"] == "text"]
        value = "\n".join([IMAGE_MARK] * len(paths) + texts)
        extra = {key: item for key, item in message.items() if key not in ("role", "content")}
        turns.append({**extra, "from": _SPEAKERS[message["role"]], "value": value})
        images += paths
    record["images"] = images
    return record, turns


def _refuse_parts_without_a_place(message: Message, sample: str) -> None:
    """A turn is a text and pictures; what else a message holds would be gone for its readers."""
    for part in message["content"]:
        if part["type"] in ("video", "box"):
            raise DataError(
                f"{sample}: this form has no place for a {part['type']} part"
                f" ({describe_part(part)}); keep the sample in the form schema"
            )


_FORMS: dict[str, Form] = {
    "schema": Form("schema", "messages", _read_schema, _write_schema),
    "llava": Form("llava", "conversations", from_llava, _write_llava),
    "sharegpt": Form("sharegpt", "conversations", from_sharegpt, _write_sharegpt),
}
