"""Cut-outs: photographs with transparent surroundings and clip art, by word."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from PIL import Image

from vistoken.core.errors import MachineError
from vistoken.data.scenes.archives import fetch_debian
from vistoken.data.scenes.names import Name, confusable_words, icon_names
from vistoken.data.scenes.sources import Credit
from vistoken.data.scenes.v1.packages import CLIP_ART, CREDITS, STAMPS

_KEPT_PX = 256
_STYLES = ("cutout-1", "cutout-2", "cutout-3")
_UNCOUNTED = frozenset({"corn", "broccoli", "pizza", "bacon", "milk"})
# Words that only cut-outs know, with others that might be said of the same picture.
_CONFUSABLE = """
    crow,heron,ostrich,pelican,seagull,toucan,vulture,dove,eagle,goose,duck,swan,chicken,turkey
    flamingo,heron,ostrich,peacock,pelican / goose,swan,duck,chicken / toucan,parrot
    flower,rose,daffodil,sunflower,tulip,lotus,bouquet,button / hat,cap,top hat,helmet,crown
    apricot,orange,peach,mango,apple,lemon / mug,cup,glass,beer / kettle,teapot / bison,cow,donkey
    bison,bear,sheep / otter,beaver,seal,squirrel / seahorse,fish,dragon / grasshopper,ant,beetle
    candy cane,candy / pinecone,pine,hedgehog / hot air balloon,balloon,parachute
    tennis ball,baseball,lemon,lime / glove,boxing glove / sock,boot / spade,hammer,axe,broom
    planet,moon,basketball,orange / moon,coin,button / monkey,koala,squirrel / bandage,log
    tooth,glove / traffic cone,siren / lion,tiger,dog,bear / coat,shirt / rat,mouse,rabbit
    horse,donkey,deer,cow,camel,zebra / goat,deer,sheep,cow,dog / fox,dog,deer / whale,dolphin
    hippo,rhino,pig,elephant,bear / rabbit,kangaroo / wheel,button / dolphin,fish / car,racing car
    bus,train,tram / monkey,gorilla,otter / toolbox,box,suitcase / trash can,box,barrel,bucket
"""


@dataclass(frozen=True)
class Cutout:
    """One picture of a word."""

    word: str
    package: str
    path: str


@cache
def cutout_table() -> tuple[Cutout, ...]:
    """All cut-outs, in the order of the committed table."""
    text = resources.files(__package__).joinpath("cutouts.txt").read_text(encoding="utf-8")
    found: list[Cutout] = []
    package = ""
    for line in text.splitlines():
        if line.startswith("["):
            package = line.strip("[]")
        elif line and not line.startswith("#"):
            word, _, paths = line.partition(": ")
            found += [Cutout(word, package, path) for path in paths.split()]
    return tuple(found)


@cache
def held_out_pictures() -> frozenset[str]:
    """Paths that no training scene shows; every word of theirs is known from another picture."""
    by_word: dict[str, list[str]] = {}
    for cutout in cutout_table():
        by_word.setdefault(cutout.word, []).append(cutout.path)
    known = {name.word for name in icon_names()}
    held_out: set[str] = set()
    for word, paths in by_word.items():
        ordered = sorted(paths, key=_digest)
        if len(paths) > 1:
            held_out.add(ordered[0])
        elif word in known and _digest(paths[0]) % 3 == 0:
            held_out.add(paths[0])
    return frozenset(held_out)


def _digest(path: str) -> int:
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:4])


class CutoutSource:
    """Cut-outs as drawings (see `DrawingSource`); a style is one of a word's pictures.

    Args:
        held_out: Whether it has the pictures kept out of training, or the others.

    Raises:
        MachineError: A package could not be fetched, or resvg-py is missing.
    """

    title = "cut-outs"
    may_mirror = True

    def __init__(self, held_out: bool) -> None:
        wanted = [c for c in cutout_table() if (c.path in held_out_pictures()) == held_out]
        self._pictures: dict[str, list[Cutout]] = {}
        for cutout in wanted:
            self._pictures.setdefault(cutout.word, []).append(cutout)
        self.names = tuple(_name(word, found[0].path) for word, found in self._pictures.items())
        self.confusable = merged_confusable()
        self.train_styles: tuple[str, ...] = _STYLES
        self.held_out_styles: tuple[str, ...] = ()
        self.credits: dict[str, Credit] = {key: CREDITS[key] for key in ("stamps", "clip-art")}
        self._folders = {"stamps": fetch_debian(STAMPS), "clip-art": fetch_debian(CLIP_ART)}
        self._loaded: dict[str, Image.Image] = {}

    def drawing(self, name: Name, style: str) -> Image.Image:
        """Look up a cut-out (RGBA), cropped to its visible part."""
        found = self._pictures[name.word]
        cutout = found[_STYLES.index(style) % len(found)]
        if cutout.path not in self._loaded:
            picture = _load(self._folders[cutout.package] / cutout.path)
            picture.thumbnail((_KEPT_PX, _KEPT_PX))
            self._loaded[cutout.path] = picture.crop(picture.getchannel("A").getbbox())
        return self._loaded[cutout.path]

    def background_clashes(self, name: Name, colour: str) -> bool:
        """Cut-outs are compared with the background pixel by pixel instead."""
        return False


@cache
def merged_confusable() -> dict[str, frozenset[str]]:
    """What icons may be confused with, and cut-outs besides."""
    rivals = {word: set(others) for word, others in confusable_words().items()}
    for line in _CONFUSABLE.strip().splitlines():
        for group in line.split("/"):
            words = {word.strip() for word in group.split(",")}
            for word in words:
                rivals.setdefault(word, set()).update(words - {word})
    return {word: frozenset(others) for word, others in rivals.items()}


def _name(word: str, path: str) -> Name:
    known = {name.word: name for name in icon_names()}
    if word in known:
        return known[word]
    folder = path.split("/")[0]
    category = {"animals": "animal", "plants": "plant", "vehicles": "vehicle"}.get(folder, folder)
    return Name(word, word, category, word not in _UNCOUNTED)


def _load(path: Path) -> Image.Image:
    if path.suffix == ".png":
        with Image.open(path) as picture:
            return picture.convert("RGBA")
    try:
        from resvg_py import svg_to_bytes
    except ImportError as error:
        raise MachineError(
            "rendering clip art needs resvg-py; install vistoken[scenes] or leave the cut-outs out."
        ) from error
    svg = path.read_text(encoding="utf-8", errors="replace")
    png = svg_to_bytes(svg_string=svg, width=_KEPT_PX, skip_system_fonts=True)
    with Image.open(io.BytesIO(bytes(png))) as picture:
        return picture.convert("RGBA")
