"""Draw the scene that the demo asks about: one of vistoken-scenes' held-out compositions."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from vistoken.data.scenes.compose import is_held_out
from vistoken.data.scenes.v1.scenes import ScenePart, questions_of
from vistoken.data.scenes.v1.workshop import Workshop

SPLIT, INDEX, SEED, SIZE_PX = "val", 35, 0, 336
STYLE = "noto"
OUT = Path(__file__).parents[1] / "src" / "vistoken" / "assets"


def main() -> None:
    """Write `demo_scene.png` and `demo_scene.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write to")
    out: Path = parser.parse_args().out

    workshop = Workshop(SEED, SIZE_PX, "icons")
    part = ScenePart(workshop, SPLIT)
    scene, picture = part.compose(INDEX)
    if {thing.style for thing in scene.objects} != {STYLE}:
        raise SystemExit(f"scene {scene.scene_id} has drawings of other styles than {STYLE}.")
    if not is_held_out(frozenset(thing.name.word for thing in scene.objects)):
        raise SystemExit(f"scene {scene.scene_id} shows names that occur together in training.")
    asked = questions_of(scene, part.drawings, SEED)
    naming = (question for question in asked if question.kind == "nameN")
    first = next(question for question in naming if question.facts["direction"] == "above")

    credit = workshop.credits[STYLE]
    content = {
        "image": "demo_scene.png",
        "kind": first.kind,
        "question": first.text,
        "accepted_answers": [first.answer],
        "more_questions": [
            {"kind": item.kind, "question": item.text, "accepted_answers": [item.answer]}
            for item in asked
            if item is not first
        ],
        "annotation": scene.annotation("demo_scene.png"),
        "credit": f"Drawings: {credit.title}, {credit.author}, {credit.license} ({credit.origin})",
    }
    out.mkdir(parents=True, exist_ok=True)
    picture.save(out / "demo_scene.png", optimize=True)
    text = json.dumps(content, indent=2) + "\n"
    (out / "demo_scene.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
