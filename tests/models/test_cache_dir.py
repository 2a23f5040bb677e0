from __future__ import annotations

from pathlib import Path

import pytest

from vistoken.models.cache_dir import cache_dir


@pytest.mark.parametrize(
    ("own", "shared", "expected"),
    [
        ("/data/vistoken", "/shared", Path("/data/vistoken")),
        ("~/models", "/shared", Path.home() / "models"),
        ("", "/shared", Path("/shared/vistoken")),
        ("", "", Path.home() / ".cache" / "vistoken"),
    ],
)
def test_order_of_the_settings(
    own: str, shared: str, expected: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISTOKEN_HOME", own)
    monkeypatch.setenv("XDG_CACHE_HOME", shared)
    assert cache_dir() == expected
