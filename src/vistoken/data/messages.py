"""Conversations: the messages schema, and other training files read as it."""

from vistoken.data.schema import (
    BoxPart,
    FaultKind,
    ImagePart,
    Message,
    Part,
    Report,
    Role,
    SampleFault,
    TextPart,
    VideoPart,
    image_paths,
    is_picture_file,
    name_sample,
    read_messages,
)
from vistoken.data.turns import from_llava, from_sharegpt

__all__ = [
    "BoxPart",
    "FaultKind",
    "ImagePart",
    "Message",
    "Part",
    "Report",
    "Role",
    "SampleFault",
    "TextPart",
    "VideoPart",
    "from_llava",
    "from_sharegpt",
    "image_paths",
    "is_picture_file",
    "name_sample",
    "read_messages",
]
