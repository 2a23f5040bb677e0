"""The demo's photograph is fetched by name and checked by content."""

import pytest

from vistoken.convert import photograph


def test_photograph_is_pinned_by_its_content():
    pin = photograph.PHOTOGRAPH
    assert pin.archive is None  # one wheel per platform
    assert len(pin.contents) == len(pin.members) == 1
    assert "CC0" in photograph.CREDIT


def test_file_is_the_pinned_member(monkeypatch, tmp_path):
    monkeypatch.setattr(photograph, "fetch_wheel", lambda pin, progress: tmp_path)
    assert photograph.fetch_photograph() == tmp_path / "skimage" / "data" / "coffee.png"


@pytest.mark.network
def test_photograph_can_be_fetched(monkeypatch, tmp_path):
    from vistoken.models.images import open_image

    monkeypatch.setenv("VISTOKEN_HOME", str(tmp_path))
    assert open_image(photograph.fetch_photograph()).size == (600, 400)
