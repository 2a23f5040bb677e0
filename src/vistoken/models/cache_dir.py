"""Where fetched and converted files are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Return the root of the on-disk cache; nothing is created.

    Returns:
        `$VISTOKEN_HOME` if set, else `$XDG_CACHE_HOME/vistoken`, else `~/.cache/vistoken`.
    """
    own = os.environ.get("VISTOKEN_HOME", "")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(shared).expanduser() if shared else Path.home() / ".cache"
    return base / "vistoken"
