"""`vistoken viz views`: files, words and codes."""

from PIL import Image


def test_views_are_drawn(vistoken, image, tmp_path):
    png, page = tmp_path / "v.png", tmp_path / "v.html"
    outcome = vistoken("viz", "views", image, "--model", "pico", "-o", png, "-o", page, "--json")
    assert outcome.code == 0, outcome
    assert outcome.data["written"]
    assert [view["tokens"] for view in outcome.data["views"]] == [outcome.data["tokens"]]
    assert Image.open(png).format == "PNG"
    assert page.read_text().startswith("<!doctype html>")
    assert {path.name for path in tmp_path.iterdir()} == {"v.png", "v.html", "picture.png"}


def test_a_dry_run_writes_nothing(vistoken, image, tmp_path):
    outcome = vistoken(
        "viz", "views", image, "-m", "inf-llava-8b", "-o", tmp_path / "v.png", "--dry-run"
    )
    assert outcome.code == 0, outcome
    assert "19 views, 576 tokens; would write" in outcome.out
    assert not (tmp_path / "v.png").exists()


def test_refusals(vistoken, image, tmp_path):
    call = ("viz", "views", image, "-m", "pico", "-o")
    vistoken(*call, tmp_path / "v.gif").failed(2, "must end with .png or .html")
    vistoken(*call, tmp_path / "no" / "v.png").failed(2, "does not exist")
    missing = vistoken(
        "viz", "views", tmp_path / "none.png", "-m", "pico", "-o", tmp_path / "v.png"
    )
    missing.failed(3, "does not exist")
