"""The view function ``inf-dcm``: every picture as tiles, as strided views and undivided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vistoken.core.parts import TowerInput, ViewFunction
from vistoken.core.registry import load_part, make_config
from vistoken.core.tables import VIEW, ViewKind
from vistoken.systems.inf_llava.config import InfDcmConfig, live_phases
from vistoken.systems.inf_llava.cutting import list_views, warn_once

LOCAL_GROUP, STRIDED_GROUP = 1, 2


class InfDcm(ViewFunction):
    """Dual-perspective cropping: n*n tiles, n*n strided views of the whole scene, the whole view.

    The picture is first made n times the tower's size by another view function (``fit``). A
    strided view takes every n-th pixel from an offset of its own, so it shows the whole scene.
    Without the stage ``inf-dem`` every view gives tokens of its own.

    Source: arXiv 2407.16198 section 3.2; WeihuangLin/INF-LLaVA.
    """

    config_class = InfDcmConfig

    def __init__(self, config: InfDcmConfig, towers: Sequence[TowerInput]) -> None:
        super().__init__(config, towers)
        enlarged = 1 if config.compat == "official" else config.n
        prepared = [
            replace(tower, size=(tower.size[0] * enlarged, tower.size[1] * enlarged))
            for tower in self.towers
        ]
        part = load_part("views", config.fit)
        self._whole: ViewFunction = part(make_config(part.config_class, {}, config.fit), prepared)
        self._shrink = config.n // enlarged  # what cutting still has to enlarge
        self._strided = _strided_phases(config)

    def view_table(self, height: int, width: int) -> Tensor:
        """Rows: tiles, strided views, the whole view; within each, tower by tower."""
        whole = self._whole.view_table(height, width)
        tables = [
            self._tower_rows(row, tower, number)
            for number, (row, tower) in enumerate(zip(whole, self.towers, strict=True))
        ]
        table = torch.stack(tables, dim=1).flatten(0, 1)
        index = torch.arange(len(table))
        return VIEW.set(table, index=index, source=index)

    def pixels(self, image: Any) -> list[Tensor]:
        """Views of the enlarged picture, in the order of the table."""
        self._warn_if_enlarged(image.height, image.width)
        n = self.config.n
        kept = [*range(n * n), *(n * n + phase for phase in self._strided), 2 * n * n]
        per_tower = [
            list_views(prepared[None], n, tower.size)
            for prepared, tower in zip(self._whole.pixels(image), self.towers, strict=True)
        ]
        return [views[number][0] for number in kept for views in per_tower]

    def _tower_rows(self, whole: Tensor, tower: TowerInput, number: int) -> Tensor:
        """All views of one tower; ``whole`` is the row of the picture that is cut."""
        n = self.config.n
        tile, phase = torch.arange(n * n), torch.tensor(self._strided, dtype=torch.int64)
        count = len(tile) + len(phase) + 1
        row = torch.cat([tile // n, phase // n, torch.tensor([0])])
        col = torch.cat([tile % n, phase % n, torch.tensor([0])])
        local = torch.arange(count) < len(tile)
        base = torch.arange(count) == count - 1
        strided = ~local & ~base
        columns: dict[str, Tensor] = {}
        for axis, side, (first, last), place in (
            ("y", tower.size[0], ("top", "bottom"), row),
            ("x", tower.size[1], ("left", "right"), col),
        ):
            scale = VIEW.get(whole, f"scale_{axis}") / self._shrink
            start = VIEW.get(whole, f"shift_{axis}")
            # Where a view's first pixel begins on the large picture. A strided view's pixel k is
            # the large picture's n*k + offset; both are read at the pixel's middle.
            begin = torch.where(local, place * float(side), 0.0)
            begin = torch.where(strided, place + 0.5 - n / 2, begin)
            step = torch.where(local, scale, scale * n)
            shift = start + scale * begin
            valid = [
                VIEW.get(whole, edge) * VIEW.get(whole, f"scale_{axis}") for edge in (first, last)
            ]
            columns[f"scale_{axis}"], columns[f"shift_{axis}"] = step, shift
            for edge, distance in zip((first, last), valid, strict=True):
                columns[edge] = ((start + distance - shift) / step).clamp(0, side)
        return VIEW.set(
            whole.expand(count, -1),
            tower=number,
            kind=torch.where(local, int(ViewKind.TILE), int(ViewKind.STRIDED)).where(
                ~base, int(ViewKind.GLOBAL)
            ),
            group=(LOCAL_GROUP * local + STRIDED_GROUP * strided),
            row=row,
            col=col,
            rows=torch.where(base, 1, n),
            cols=torch.where(base, 1, n),
            height=tower.size[0],
            width=tower.size[1],
            **columns,
        )

    def _warn_if_enlarged(self, height: int, width: int) -> None:
        if self.config.compat == "official":
            return  # cutting says so itself
        whole = self._whole.view_table(height, width)[0]
        scale = min(VIEW.get(whole, axis).item() for axis in ("scale_y", "scale_x"))
        if scale < 1:
            side = [VIEW.get(whole, name).item() for name in ("height", "width")]
            warn_once(
                f"pictures below {side}",
                f"inf-dcm: a picture of {height}x{width} pixels is enlarged to fill "
                f"{side[0]}x{side[1]} (n = {self.config.n}), which adds no detail",
            )


def _strided_phases(config: InfDcmConfig) -> tuple[int, ...]:
    """Numbers of the strided views to make."""
    if config.global_views == "all":
        return tuple(range(config.n**2))
    # The only live one of an odd n shows the very pixels of the undivided view.
    return () if config.n % 2 else live_phases(config.n)
