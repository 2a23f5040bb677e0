"""`examples/demo.py`, with a model that answers what the test wants."""

import importlib.util
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


@pytest.fixture
def demo(monkeypatch):
    specification = importlib.util.spec_from_file_location("demo", DEMO)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    monkeypatch.setattr(module, "ensure_nano_parts", lambda tell: None)
    return module


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("umbrella", True),
        ("An umbrella.", True),
        ("The Umbrella", True),
        ("pizza", False),
        ("not an umbrella", False),
        ("", False),
    ],
)
def test_answers_are_judged(demo, said, right):
    assert demo.is_right(said, ["umbrella"]) is right


@pytest.mark.parametrize(("said", "code"), [("Web.", 0), ("shell", 1)])
def test_demo_tells_right_from_wrong(demo, monkeypatch, capsys, said, code):
    from vistoken.core.errors import MachineError

    def no_network(tell):
        raise MachineError("no network; try again")

    monkeypatch.setattr(demo, "fetch_photograph", no_network)
    monkeypatch.setattr(demo.vistoken, "load", lambda name: (None, None), raising=False)
    monkeypatch.setattr(demo, "ask", lambda *_: said)
    assert demo.main() == code
    out = capsys.readouterr().out
    assert ("WRONG" in out) is (code == 1)
    assert "no network" in out
    assert "chat --model nano --image" in out


def test_demo_asks_the_model(demo, pico, picture, monkeypatch, capsys, tmp_path):
    photograph = tmp_path / "photo.png"
    picture(40, 60).save(photograph)
    monkeypatch.setattr(demo, "fetch_photograph", lambda tell: photograph)
    monkeypatch.setattr(demo.vistoken, "load", lambda name: pico, raising=False)
    assert demo.main() == 1
    assert "CC0" in capsys.readouterr().out
