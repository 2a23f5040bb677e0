"""Vision-language models of the LLaVA family as one pipeline with parts that plug in.

Importing this package loads neither torch nor transformers; `load` and `encode_images` bring them
in when they are first touched.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vistoken.api import encode_images, load

__version__ = "0.1.0"
__all__ = ["__version__", "encode_images", "load"]

_FROM_API = frozenset({"encode_images", "load"})


def __getattr__(name: str) -> object:
    if name not in _FROM_API:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module("vistoken.api"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
