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


def test_attention_is_drawn(vistoken, image, tmp_path):
    png, page = tmp_path / "a.png", tmp_path / "a.html"
    call = ("viz", "attention", image, "-q", "What is it?", "-m", "pico", "--answer", "a cup")
    outcome = vistoken(*call, "--layer", 1, "--head", 2, "-o", png, "-o", page, "--json")
    assert outcome.code == 0, outcome
    assert outcome.data["attention"] == "layer 1, head 2"
    assert outcome.data["layers"] == [1]
    tokens = outcome.data["answer_tokens"]
    assert "".join(token["text"] for token in tokens).strip() == "a cup"
    for token in tokens:
        assert abs(sum(token["shares"].values()) - 1) < 1e-5
        assert len(token["weights"]) == len(outcome.data["visual_tokens"])
    assert Image.open(png).format == "PNG"
    assert page.read_text().startswith("<!doctype html>")
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "a.html", "picture.png"}
    said = vistoken(*call, "--rollout", "-o", png)
    assert "rollout through 2 layers" in said.out


def test_attention_of_the_model_s_own_answer(vistoken, image, tmp_path):
    call = ("viz", "attention", image, "-q", "What?", "-m", "pico", "-o", tmp_path / "a.png")
    outcome = vistoken(*call, "--max-new-tokens", 3, "--json")
    assert outcome.code == 0, outcome
    assert 1 <= len(outcome.data["answer_tokens"]) <= 3


def test_attention_refusals(vistoken, image, tmp_path):
    call = ("viz", "attention", image, "-q", "What?", "-m", "pico", "-o", tmp_path / "a.png")
    vistoken(*call, "--layer", 2).failed(2, "no layer 2", "0 to 1")
    vistoken(*call, "--head", 4).failed(2, "no head 4", "0 to 3")
    vistoken(*call, "--rollout", "--layer", 0).failed(2, "all layers and heads")
    vistoken("viz", "attention", image, "-q", " ", "-m", "pico").failed(3, "question is empty")
    assert vistoken(*call, "--dry-run").code == 0
    assert not (tmp_path / "a.png").exists()


def test_tokens_are_drawn(vistoken, image, tmp_path):
    png, page = tmp_path / "t.png", tmp_path / "t.html"
    call = ("viz", "tokens", image, "-m", "pico", "-o", png, "-o", page)
    outcome = vistoken(*call, "--json")
    assert outcome.code == 0, outcome
    assert outcome.data["cells"]["kept"] == 16 - outcome.data["cells"]["padding"]
    assert outcome.data["kinds"] == {"visual": 16, "spatial": 2}
    assert outcome.data["layers"] == []
    run = vistoken(*call, "-q", "What is it?", "--json").data
    assert [row["full"] for row in run["layers"]] == [18, 18]
    assert "wrote" in vistoken(*call).out
    assert {path.name for path in tmp_path.iterdir()} == {"t.png", "t.html", "picture.png"}


def test_tokens_of_a_recipe_without_weights(vistoken, image, tmp_path):
    call = ("viz", "tokens", image, "-m", "llava-uhd-7b", "-o", tmp_path / "t.png", "--dry-run")
    outcome = vistoken(*call)
    assert outcome.code == 0, outcome
    assert "merged" in outcome.out
    assert "would write" in outcome.out
