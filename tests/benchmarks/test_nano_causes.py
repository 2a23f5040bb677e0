"""Readers of patch tokens and of training logs, on cases whose result is known."""

import json
from types import SimpleNamespace

import nano_causes
import nano_curves
import nano_weights
import pytest
import torch

from vistoken.core.tables import TOKEN, TokenKind
from vistoken.eval.records import Record
from vistoken.train.alignment import PatchTokens
from vistoken.train.scenes import Scene


class Words:
    """Three words; a token is its word's number, one-hot."""

    words = ("cat", "dog", "red")

    def logits(self, tokens):
        return 20 * tokens


def picture(grid):
    """A picture whose cells of 10 x 10 pixels show the words of a grid."""
    cells = [(r, c, word) for r, row in enumerate(grid) for c, word in enumerate(row)]
    token_map = TOKEN.make(
        len(cells),
        kind=TokenKind.VISUAL,
        top=[10 * r for r, _, _ in cells],
        left=[10 * c for _, c, _ in cells],
        bottom=[10 * r + 10 for r, _, _ in cells],
        right=[10 * c + 10 for _, c, _ in cells],
    )
    shown = torch.tensor([Words.words.index(word) for _, _, word in cells])
    return PatchTokens(torch.nn.functional.one_hot(shown, 3).float(), token_map)


READER = nano_causes.Reader(Words(), torch.tensor([True, True, False]))
GRID = picture(
    [
        ["cat", "cat", "red", "red"],
        ["red", "red", "red", "dog"],
        ["cat", "red", "red", "dog"],
    ]
)


def test_the_name_in_a_box():
    assert READER.name(GRID, (10, 30, 30, 40)) == "dog"
    assert READER.name(GRID, (0, 0, 3, 3)) is None
    assert READER.name(GRID, (0, 20, 10, 40)) in ("cat", "dog")  # never a colour


def test_things_are_areas_of_more_than_one_cell():
    assert READER.number(GRID) == 2
    touching = picture([["cat", "cat", "dog", "dog"], ["cat", "red", "red", "red"]])
    assert READER.number(touching) == 2


@pytest.mark.parametrize(
    ("direction", "answer"), [("left", "cat"), ("right", "dog"), ("above", "cat"), ("below", "dog")]
)
def test_relations_are_read_off_places(direction, answer):
    scene = Scene("a.png", ("cat", "dog"), ((0, 0, 10, 20), (10, 30, 30, 40)), "red")
    content = [{"type": "text", "text": "Which is it, the cat or the dog?"}]
    row = {"answer": answer, "direction": direction, "messages": [{"content": content}]}
    seen = picture([["cat", "cat", "red", "red"], ["red", "red", "red", "dog"]])
    assert nano_causes.relation(READER, seen, scene, row)
    wrong = {**row, "answer": {"cat": "dog", "dog": "cat"}[answer]}
    assert not nano_causes.relation(READER, seen, scene, wrong)


def test_columns_in_order_are_alike_and_columns_at_random_are_not():
    order = torch.linspace(-1, 1, 8)[:, None] * torch.ones(8, 4)
    tables = {"rows": torch.eye(8), "cols": order}
    projector = torch.nn.ModuleDict(
        {
            "rms-scale": torch.nn.ParameterDict({"gain": torch.tensor([0.15])}),
            "row-col": torch.nn.ParameterDict(tables),
        }
    )
    model = SimpleNamespace(model=SimpleNamespace(multi_modal_projector=projector))
    found = nano_weights.place_vectors(model)
    assert found["token_rms"] == 0.15
    assert found["rows"] == {"rms": 0.3536, "neighbours_cosine": pytest.approx(-1 / 7, abs=1e-3)}
    assert found["cols"]["neighbours_cosine"] == pytest.approx(5 / 7, abs=1e-3)


def question(text, answer, said, **more):
    content = [{"type": "image", "path": "a.png"}, {"type": "text", "text": text}]
    row = {"id": text, "kind": "relation", "answer": answer, "messages": [{"content": content}]}
    right = said == answer
    return Record("val", text, "relation", "a", answer, said, right, right, False), row | more


def test_a_wrong_name_is_known_by_its_beginning():
    text = "Is the cocktail or the steak on the right?"
    assert nano_curves.wrong_name(*question(text, "steak", "cock")) == "the other thing"
    assert nano_curves.wrong_name(*question(text, "steak", "no")) == "neither"


def test_questions_are_set_apart_by_wording_and_direction():
    asked = [
        question("a?", "cat", "cat", phrasing="seen", direction="above", things=2),
        question("b?", "cat", "dog", phrasing="unseen", direction="left", things=2),
        question("c?", "cat", "cat", phrasing="seen", direction="right", things=3),
    ]
    found = nano_curves.breakdown([r for r, _ in asked], {row["id"]: row for _, row in asked})
    assert found["relation"]["seen wording"]["n"] == 2
    assert found["relation"]["left, right"]["value"] == 0.5
    assert found["relation"]["left, right, unseen wording"]["value"] == 0
    assert found["wrong"]["relation"] == {"neither": 1}


def test_curves_take_every_hundredth_step_of_the_stage():
    log = [{"stage": "align", "step": 100, "questions": 1}] + [
        {"stage": "joint", "step": s, "questions": 9 * s, "epoch": s / 500, "exact/count": s / 400}
        for s in range(50, 401, 50)
    ]
    grown = nano_curves.curves([*log, {"stage": "joint", "step": 400, "train_loss": 1.0}], "joint")
    assert grown["steps"] == [100, 200, 300, 400]
    assert grown["questions"] == [900, 1800, 2700, 3600]
    assert grown["exact"] == {"count": [0.25, 0.5, 0.75, 1.0]}


def test_the_committed_curves_are_those_of_the_picture(tmp_path):
    result = json.loads(nano_curves.RESULT.read_text("utf-8"))
    assert "| `relation` |" in nano_curves.tables(result)
    assert {len(values) for values in result["curves"]["exact"].values()} == {
        len(result["curves"]["steps"])
    }
