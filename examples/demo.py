"""What nano can do: a scene it never saw, then a photograph, then your own picture.

`make demo` runs this after set-up. Everything here is the public API.
"""

from __future__ import annotations

import json
import sys
import textwrap
from importlib import resources
from pathlib import Path
from typing import Any

from vistoken.cli.console import quieten

quieten()  # libraries talk while they are imported

import vistoken  # noqa: E402
from vistoken.convert.nano_parts import ensure_nano_parts  # noqa: E402
from vistoken.convert.photograph import CREDIT, fetch_photograph  # noqa: E402
from vistoken.core.errors import MachineError, UsageError, VistokenError, WeightsError  # noqa: E402
from vistoken.models.images import open_image  # noqa: E402

WIDTH = 88
PHOTO_QUESTION = "What is in the picture?"
LIMITS = (
    "nano learned from composed scenes of drawn objects: naming, presence and colours; counts and "
    "positions are unreliable. A photograph is outside what it was taught. Its answer above shows "
    "that the pipeline runs; it is not to be relied on. Its model card has the measurements."
)


def main() -> int:
    assets = resources.files("vistoken") / "assets"
    scene = json.loads((assets / "demo_scene.json").read_text(encoding="utf-8"))
    with resources.as_file(assets / scene["image"]) as path:
        picture = open_image(path)
        heading("1. A scene that no training set holds")
        print(f"picture:  {shown(path)}")
    try:
        ensure_nano_parts(print)
        model, processor = vistoken.load("nano")
    except (UsageError, WeightsError) as error:
        print(f"nano cannot answer yet: {error}")
        return error.exit_code

    said = ask(model, processor, picture, scene["question"])
    right = is_right(said, scene["accepted_answers"])
    print(f"question: {scene['question']}")
    print(f"answer:   {said}")
    print(f"          {'right' if right else 'WRONG'}: it is {scene['accepted_answers'][0]!r}")
    print(f"          {scene['credit']}")

    heading("2. A photograph")
    try:
        photograph = fetch_photograph(print)
    except (MachineError, WeightsError) as error:
        print(f"left out: {error}")
    else:
        print(f"picture:  {shown(photograph)}")
        print(f"          {CREDIT}")
        print(f"question: {PHOTO_QUESTION}")
        print(f"answer:   {ask(model, processor, open_image(photograph), PHOTO_QUESTION)}")
        print(textwrap.fill(f"limits:   {LIMITS}", WIDTH, subsequent_indent=" " * 10))

    heading("3. Your own picture")
    program = Path(sys.executable).parent / "vistoken"
    print(f'{shown(program)} chat --model nano --image PICTURE "What is in the picture?"')
    return 0 if right else 1


def heading(text: str) -> None:
    print(f"\n{text}\n{'-' * min(len(text), WIDTH)}")


def ask(model: Any, processor: Any, picture: Any, question: str) -> str:
    content = [{"type": "image"}, {"type": "text", "text": question}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    inputs = processor(text=prompt, images=[picture], return_tensors="pt").to(model.device)
    output = model.generate(**inputs, max_new_tokens=32, do_sample=False)
    answer = output[0, inputs["input_ids"].shape[1] :]
    return processor.decode(answer, skip_special_tokens=True).strip()


def is_right(said: str, accepted: list[str]) -> bool:
    """Compare whole answers, without case, a leading article and the full stop."""
    words = said.lower().strip(" .!\n").split()
    if words and words[0] in ("a", "an", "the"):
        words = words[1:]
    return " ".join(words) in accepted


def shown(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except VistokenError as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(problem.exit_code)
