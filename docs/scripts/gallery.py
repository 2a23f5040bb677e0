"""Draw the pictures of docs/gallery.md: views and tokens of every registered system.

    python docs/scripts/gallery.py [NAME ...]

Views and tokens are geometry, so the pictures of whole pipelines come from the recipes as they
are and no weights are read. What a mechanism does in the decoder is followed through pico, whose
weights are random: how many tokens stay in a layer follows from the mechanism's options.
"""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vistoken.core.files import write_atomically
from vistoken.models.build import build
from vistoken.models.image_processing import VistokenImageProcessor
from vistoken.models.recipe import Recipe, load_recipe, parse_recipe
from vistoken.viz.fates import TokenStory, tell_story
from vistoken.viz.layer_rows import follow_tokens
from vistoken.viz.story_png import draw_story
from vistoken.viz.views import describe_views, draw_views

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "docs" / "assets" / "gallery"
UPPER, ENLARGED = 200, 3
"""Rows of the scene that are shown, and how much larger: a wide picture that is worth cutting."""
WIDEST, PALETTE = 1100, 256
LAYERS = 8
QUESTION = "What is it?"


@dataclass(frozen=True)
class Shown:
    """One system of the gallery.

    Args:
        recipe: The recipe it starts from.
        changes: Fields of the recipe that differ.
        layers: Whether its tokens are followed through a decoder.
    """

    recipe: str
    changes: dict[str, Any] = field(default_factory=dict)
    layers: bool = False

    def read(self) -> Recipe:
        """The recipe with the changes."""
        values = load_recipe(self.recipe).model_dump(exclude_none=True) | self.changes
        if self.layers:
            values["language_model"]["config"]["num_hidden_layers"] = LAYERS
        return parse_recipe(values, self.recipe)


def in_pico(mechanism: str, options: dict[str, Any], **changes: Any) -> Shown:
    """A mechanism in pico with so many layers that its pattern shows."""
    parts = {"connector": ["mlp"], "mechanisms": [{"part": mechanism, "options": options}]}
    return Shown("pico", parts | changes, layers=True)


SHOWN = {
    "llava-1.5-7b": Shown("llava-1.5-7b"),
    "square": Shown("llava-1.5-7b", {"views": "square"}),
    "llava-1.5-anyres-7b": Shown("llava-1.5-anyres-7b"),
    "llava-sp-cropping-7b": Shown("llava-sp-cropping-7b"),
    "llava-sp-pooling-anyres-7b": Shown("llava-sp-pooling-anyres-7b"),
    "nano": Shown("nano"),
    "free-tokens": Shown("llava-1.5-7b", {"connector": ["mlp", "free-tokens"]}),
    "llava-uhd-7b": Shown("llava-uhd-7b"),
    "inf-llava-nano": Shown("inf-llava-nano"),
    "mini-monkey-nano": Shown("mini-monkey-nano"),
    "no-op": in_pico("no-op", {}),
    "saisa": in_pico("saisa", {}),
    "naavit": in_pico("naavit", {}),
    "yopo": in_pico("yopo", {"mode": "drop", "window": 3, "layer_cut": 4, "mlp_ratio": 2}),
    "scm": in_pico(
        "scm",
        {},
        views=load_recipe("mini-monkey-nano").model_dump()["views"],
        connector=["pixel-shuffle"],
    ),
}
"""Every picture's name, and what it shows."""


def main() -> None:
    """Draw what was named, or everything."""
    OUT.mkdir(parents=True, exist_ok=True)
    picture = read_picture()
    for name in sys.argv[1:] or SHOWN:
        shown = SHOWN[name]
        processor = image_processor(shown)
        story = story_of(shown, processor, picture)
        save(draw_story(picture, story, name), f"tokens-{name}.png")
        if not shown.layers:
            views = describe_views(story.view_table, story.tokens)
            save(draw_views(picture, views), f"views-{name}.png")


def read_picture() -> Image.Image:
    """The upper part of the example scene, enlarged."""
    with Image.open(ROOT / "examples" / "scene.png") as scene:
        part = scene.convert("RGB").crop((0, 0, scene.width, UPPER))
    return part.resize((ENLARGED * part.width, ENLARGED * part.height), Image.Resampling.BICUBIC)


def image_processor(shown: Shown) -> VistokenImageProcessor:
    """A system's views and token plan; no weights."""
    recipe = shown.read()
    return VistokenImageProcessor(recipe.pipeline(recipe.model_config_for()).to_dict())


def story_of(shown: Shown, processor: VistokenImageProcessor, picture: Image.Image) -> TokenStory:
    """A system's tokens of the picture, followed through the decoder where that is shown."""
    if not shown.layers:
        return tell_story(processor.plan, processor.view_table(picture.height, picture.width))
    torch.manual_seed(0)
    return follow_tokens(*build(shown.read()), picture, QUESTION)


def save(drawing: Image.Image, name: str) -> None:
    """Write one picture small: no wider than a page, few colours."""
    if drawing.width > WIDEST:
        height = round(drawing.height * WIDEST / drawing.width)
        drawing = drawing.resize((WIDEST, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    few = drawing.quantize(PALETTE, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE)
    few.save(buffer, "PNG", optimize=True)
    write_atomically(OUT / name, buffer.getvalue())


if __name__ == "__main__":
    main()
