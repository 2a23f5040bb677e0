"""Options of the mechanisms ``saisa`` and ``naavit``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

ProjectorSharing = Literal["shared_then_split", "independent"]


@dataclass(frozen=True)
class SaisaConfig:
    """Options of ``saisa``.

    Args:
        projector_sharing: ``shared_then_split`` has one projector that all layers use, until
            :func:`~vistoken.systems.saisa.precompute.split_projectors` gives each layer a copy of
            it and writes ``independent`` here; ``independent`` has one per layer from the start.
    """

    projector_sharing: ProjectorSharing = "shared_then_split"

    def __post_init__(self) -> None:
        known = get_args(ProjectorSharing)
        if self.projector_sharing not in known:
            raise ValueError(
                f"projector_sharing must be {' or '.join(map(repr, known))}, "
                f"got {self.projector_sharing!r}"
            )


@dataclass(frozen=True)
class NaavitConfig:
    """Options of ``naavit``.

    Args:
        naavit_self: Each visual token attends to itself.
        naavit_text: Visual tokens attend to the text before them.
    """

    naavit_self: bool = False
    naavit_text: bool = False
