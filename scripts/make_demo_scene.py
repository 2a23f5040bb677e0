"""Draw the scene that the demo asks about: Noto drawings, a composition no training set holds."""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from vistoken.data.scenes.compose import Scene, SceneOptions, compose_of, is_held_out
from vistoken.data.scenes.icons import IconSource
from vistoken.data.scenes.questions import ask

STYLE = "noto"
TOP, BOTTOM = "umbrella", "pizza"
BACKGROUND = "green"
LARGE_PX = 135
QUESTION = "What is the top-most object? Answer with its name only."
OUT = Path(__file__).parents[1] / "src" / "vistoken" / "assets"


def is_easy_to_see(scene: Scene) -> bool:
    """Tell whether both things are large, clearly one above the other, on the wanted colour."""
    top, bottom = (thing.box for thing in scene.objects)
    large = all(max(box[2] - box[0], box[3] - box[1]) >= LARGE_PX for box in (top, bottom))
    return scene.background == BACKGROUND and large and top[2] < bottom[0]


def main() -> None:
    """Write `demo_scene.png` and `demo_scene.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write to")
    out: Path = parser.parse_args().out

    if not is_held_out(frozenset({TOP, BOTTOM})):
        raise SystemExit(f"{TOP} with {BOTTOM} occurs in training sets; choose another pair.")
    source = IconSource()
    by_word = {name.word: name for name in source.names}
    things = [(by_word[TOP], STYLE), (by_word[BOTTOM], STYLE)]
    seed = 0
    while True:
        rng = random.Random(seed)
        scene, picture = compose_of(source, SceneOptions(), things, None, rng, split="val", index=0)
        if is_easy_to_see(scene):
            break
        seed += 1

    credit = source.credits[STYLE]
    content = {
        "image": "demo_scene.png",
        "kind": "nameN",
        "question": QUESTION,
        "accepted_answers": [TOP],
        "more_questions": [
            {"kind": item.kind, "question": item.text, "accepted_answers": [item.answer]}
            for item in ask(scene, source, rng)
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
