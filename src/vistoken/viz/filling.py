"""HTML files from the templates that come with this package."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources

_MARK = re.compile(r"@([A-Z]+)@")


def read_asset(name: str) -> str:
    """Text of a file that comes with this package."""
    return (resources.files("vistoken.viz") / "assets" / name).read_text(encoding="utf-8")


def fill(template: str, values: Mapping[str, str]) -> str:
    """Put values at the marks of a template, in one pass: marks inside of values stay as they are.

    Args:
        template: Name of the file, with marks such as ``@TITLE@``.
        values: HTML of each mark.
    """
    return _MARK.sub(lambda mark: values[mark[1]], read_asset(template))
