"""The pipeline as data: towers, views, connector chain and layout, and the tokens they give.

:class:`PipelineSpec` is stored twice, in the model's config and in the processor, because servers
load one without the other; both use :class:`TokenPlan` to know every token before any weight is
touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from vistoken.core.errors import UsageError, did_you_mean
from vistoken.core.parts import (
    ConnectorStage,
    Layout,
    PartFlags,
    StageContext,
    TowerInput,
    ViewFunction,
    ViewMap,
    grid_token_map,
)
from vistoken.core.registry import load_part, make_config, part_names, part_table
from vistoken.core.tables import TOKEN, VIEW, TokenKind, to_original
from vistoken.models.connector import Connector, ResolvedStage

STAGE_KINDS = ("fuse", "project", "reduce", "append")


@dataclass(frozen=True)
class PartSpec:
    """A part named in a configuration.

    Args:
        part: Registered name.
        options: Options of its config.
        name: Unique name in a chain; the part's own name when empty.
    """

    part: str
    options: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""

    @classmethod
    def read(cls, value: str | Mapping[str, Any] | PartSpec, where: str) -> PartSpec:
        """Read ``"name"`` or ``{"part": ..., "options": {...}, "name": ...}``."""
        if isinstance(value, PartSpec):
            return value
        if isinstance(value, str):
            return cls(value, name=value)
        spec: PartSpec = make_config(cls, dict(value), where)
        return cls(spec.part, dict(spec.options), spec.name or spec.part)


@dataclass(frozen=True)
class TowerSpec:
    """Geometry and preprocessing of one vision tower, without its weights.

    Args:
        name: Unique name; it prefixes the tower's weights when there are several.
        size: Nominal (height, width) in pixels.
        stride: Pixels per grid cell.
        width: Channels of the selected features.
        prefix: Tokens before the grid (CLS, registers) in the tower's output.
        select: ``default`` drops prefix tokens, ``full`` keeps them as register tokens.
        mean: Per-channel pixel mean, in [0, 1].
        std: Per-channel pixel standard deviation, in [0, 1].
        fit: How the tower's own processor makes a picture square.
    """

    name: str
    size: tuple[int, int]
    stride: int
    width: int
    prefix: int = 0
    select: Literal["default", "full"] = "default"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    fit: Literal["crop", "stretch"] = "crop"

    def __post_init__(self) -> None:
        for name in ("size", "mean", "std"):  # JSON knows no tuples
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.select not in ("default", "full"):
            raise ValueError(f"select must be 'default' or 'full', got {self.select!r}")

    @property
    def input(self) -> TowerInput:
        """What view functions see of this tower."""
        return TowerInput(self.name, self.size, self.mean, self.std, self.fit, self.stride)

    @property
    def kept_prefix(self) -> int:
        """Prefix tokens that reach the connector."""
        return self.prefix if self.select == "full" else 0


@dataclass(frozen=True)
class PipelineSpec:
    """Everything that decides which tokens a medium becomes."""

    towers: tuple[TowerSpec, ...]
    connector: tuple[PartSpec, ...]
    layout: PartSpec
    text_width: int
    views: PartSpec = field(default_factory=lambda: PartSpec("pad", name="pad"))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PipelineSpec:
        """Read the form that :meth:`to_dict` wrote."""
        return cls(
            towers=tuple(make_config(TowerSpec, dict(t), "tower") for t in values["towers"]),
            connector=tuple(PartSpec.read(s, "connector stage") for s in values["connector"]),
            layout=PartSpec.read(values["layout"], "layout"),
            text_width=values["text_width"],
            views=PartSpec.read(values["views"], "views"),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready form."""
        values = asdict(self)
        for tower in values["towers"]:
            tower.update({name: list(tower[name]) for name in ("size", "mean", "std")})
        return {**values, "towers": list(values["towers"]), "connector": list(values["connector"])}

    def view_function(self) -> ViewFunction:
        """Build the view function."""
        part = load_part("views", self.views.part)
        config = make_config(
            part.config_class, dict(self.views.options), f"views part {self.views.part!r}"
        )
        function: ViewFunction = part(config, [tower.input for tower in self.towers])
        return function


@dataclass(frozen=True)
class Arrangement:
    """One medium's predicted tokens.

    Args:
        order (Tensor): (N,) int64, see :meth:`~vistoken.core.parts.Layout.arrange`.
        token_map (Tensor): (N, K) int64.
        counts: Tokens that the connector makes of each anchor view.
    """

    order: Tensor
    token_map: Tensor
    counts: tuple[int, ...]


def find_stage_kind(name: str) -> str:
    """Kind of a connector part; UsageError with near names if there is none."""
    kinds = [kind for kind in STAGE_KINDS if (kind, name) in part_table()]
    if len(kinds) == 1:
        return kinds[0]
    known = [known for kind in STAGE_KINDS for known in part_names(kind)]
    raise UsageError(f"unknown connector part {name!r}: " + did_you_mean(name, known))


def resolve_chain(
    towers: Sequence[TowerSpec], connector: Sequence[PartSpec], text_width: int
) -> list[ResolvedStage]:
    """Check a connector chain and work out what each stage is built from.

    Raises:
        UsageError: Unknown part or option, wrong order, several towers without a fuse stage,
            no projection, or a chain that does not end at the decoder's width.
    """
    widths = tuple(tower.width for tower in towers)
    context = StageContext(widths, widths[0], towers[0].input.grid, text_width)
    chain: list[ResolvedStage] = []
    for spec in connector:
        kind = find_stage_kind(spec.part)
        name = spec.name or spec.part
        if name in (stage.name for stage in chain):
            raise UsageError(f"two connector stages are called {name!r}; give one another 'name'")
        part: type[ConnectorStage] = load_part(kind, spec.part)
        config = make_config(part.config_class, dict(spec.options), f"connector part {name!r}")
        chain.append(ResolvedStage(name, kind, part, config, context))
        context = part.context_after(config, context)
    kinds = [stage.kind for stage in chain]
    order = [min(STAGE_KINDS.index(kind), 2) for kind in kinds]
    if order != sorted(order) or kinds.count("project") != 1:
        raise UsageError(
            "a connector chain is fuse* -> project -> (reduce | append)* with one project stage; "
            f"got {' -> '.join(kinds) or 'nothing'}"
        )
    if len(towers) > 1 and "fuse" not in kinds:
        raise UsageError(
            f"{len(towers)} vision towers need a fuse stage first: add 'concat-grid' to the chain"
        )
    if context.width != text_width:
        raise UsageError(
            f"the connector chain ends at width {context.width}, the decoder needs {text_width}"
        )
    return chain


class TokenPlan:
    """Predicts the tokens of any view table: pure geometry, no weights.

    Args:
        spec: The pipeline.
    """

    _cache_size = 256

    def __init__(self, spec: PipelineSpec) -> None:
        self.spec = spec
        self.chain = resolve_chain(spec.towers, spec.connector, spec.text_width)
        self.layout: type[Layout] = load_part("layout", spec.layout.part)
        self.layout_config = make_config(
            self.layout.config_class,
            dict(spec.layout.options),
            f"layout part {spec.layout.part!r}",
        )
        self._cache: dict[bytes, Arrangement] = {}  # oldest first

    @property
    def flags(self) -> list[tuple[str, PartFlags]]:
        """Name and capability flags of every part in the plan."""
        return [
            *((stage.name, stage.part.flags) for stage in self.chain),
            (self.spec.layout.part, self.layout.flags),
        ]

    def ways_out(self, views: str) -> list[str]:
        """What helps a picture of too many tokens.

        Args:
            views: What gives fewer views; they belong to the processor, not to this plan.
        """
        ways = [views, *(stage.part.fewer_tokens for stage in self.chain)]
        return [*filter(None, ways), "take a language model of more positions"]

    @property
    def projected_width(self) -> int:
        """Channels of the features that enter the projection."""
        return next(stage.context.width for stage in self.chain if stage.kind == "project")

    def build(self) -> tuple[Connector, Layout]:
        """Make the connector and layout modules, freshly initialised."""
        return Connector(self.chain), self.layout(self.layout_config, self.spec.text_width)

    def view_maps(self, view_table: Tensor) -> list[ViewMap]:
        """Tokens that the connector makes of each anchor view of one medium."""
        tower = self.spec.towers[0]
        maps = [
            ViewMap(view, grid, _encoder_map(view, grid, tower.kept_prefix))
            for view in view_table[anchor_rows(view_table)]
            for grid in [
                tower.input.grid_of(
                    int(VIEW.get(view, "height").item()), int(VIEW.get(view, "width").item())
                )
            ]
        ]
        for stage in self.chain:
            maps = stage.part.token_map(stage.config, stage.context, maps)
        return maps

    def arrange(self, view_table: Tensor) -> Arrangement:
        """Predict one medium's tokens; the result is cached, do not modify it.

        Args:
            view_table (Tensor): (V, K), all views of one medium, on the CPU.
        """
        key = view_table.numpy().tobytes()
        known = self._cache.get(key)
        if known is not None:
            return known
        # what is kept for later calls must not be good for inference alone
        with torch.inference_mode(False):
            maps = self.view_maps(view_table)
            order, token_map = self.layout.arrange(self.layout_config, view_table, maps)
        counts = tuple(len(view_map.tokens) for view_map in maps)
        arrangement = Arrangement(order, token_map, counts)
        self._cache[key] = arrangement
        while len(self._cache) > self._cache_size:
            self._cache.pop(next(iter(self._cache)), None)
        return arrangement

    def token_map(self, view_table: Tensor) -> Tensor:
        """TokenMap (N, K) of one medium's view table (V, K)."""
        return self.arrange(view_table).token_map.clone()


def anchor_rows(view_table: Tensor) -> list[int]:
    """Rows of the views that may yield tokens: those of the first tower."""
    return torch.nonzero(VIEW.get(view_table, "tower") == 0).flatten().tolist()


def _encoder_map(view: Tensor, grid: tuple[int, int], prefix: int) -> Tensor:
    cells = grid_token_map(view, grid)
    if prefix == 0:
        return cells
    height, width = VIEW.get(view, "height").item(), VIEW.get(view, "width").item()
    whole = torch.tensor([[0.0, 0.0, height, width]]).repeat(prefix, 1)
    top, left, bottom, right = to_original(view.expand(prefix, -1), whole).unbind(-1)
    registers = TOKEN.make(
        prefix,
        kind=TokenKind.REGISTER,
        view=VIEW.get(view, "index"),
        group=VIEW.get(view, "group"),
        level=torch.arange(prefix),
        top=top,
        left=left,
        bottom=bottom,
        right=right,
    )
    return torch.cat([registers, cells])
