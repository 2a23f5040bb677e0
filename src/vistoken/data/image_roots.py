"""A wrong image root, told as one fault instead of one per picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from vistoken.data.schema import is_picture_file

NEARLY_ALL = 0.9
"""Share of missing pictures from which the root is to blame rather than the pictures."""

_TRIED = 5
_FOLDERS = 200


@dataclass
class Missing:
    """Pictures that are not there.

    Attributes:
        count: How many.
        first: Paths of the first few, as the data file has them.
    """

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, path: str) -> None:
        """Count a picture, and keep its path while there are few."""
        self.count += 1
        if len(self.first) < _TRIED:
            self.first.append(path)


def wrong_root(root: Path, data_folder: Path, missing: Missing, pictures: int) -> str | None:
    """One sentence about a root under which hardly any picture lies; None where most do.

    Args:
        root: Folder that the paths were looked up in.
        data_folder: Folder of the data file.
        missing: Those that are not there.
        pictures: Number of different paths in the data file.

    Returns:
        The root, an example, and the folder near by that holds it, if one does.
    """
    if missing.count < 2 or missing.count < NEARLY_ALL * pictures:
        return None
    part = f"{missing.count:,} of {pictures:,}"
    count = f"all {pictures:,}" if missing.count == pictures else part
    where = f"under {root}" if root.is_dir() else f"under {root}, which is no folder"
    found = next(_holding(root, data_folder, missing.first), None)
    advice = "give the folder that the paths start from as the image root"
    if found is not None:
        advice = f"they lie under {found}, so give that as the image root"
    return f"{count} pictures are missing {where}, such as {missing.first[0]!r}; {advice}"


def _holding(root: Path, data_folder: Path, paths: Sequence[str]) -> Iterator[Path]:
    """Folders near by that have all of these paths."""
    for folder in _neighbours(root, data_folder):
        if all(is_picture_file(folder / path) for path in paths):
            yield folder


def _neighbours(root: Path, data_folder: Path) -> Iterator[Path]:
    """The data file's folder, the root's parents, and the folders in each of them."""
    near = list(dict.fromkeys([data_folder, root, root.parent, data_folder.parent]))
    yield from near
    for folder in near:
        try:
            yield from islice((child for child in folder.iterdir() if child.is_dir()), _FOLDERS)
        except OSError:  # not there, or not to be read
            continue
