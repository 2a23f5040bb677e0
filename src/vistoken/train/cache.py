"""Features of frozen vision towers on disk, so that an image is encoded once per set-up.

A file's name is a hash of everything its content depends on: the image's bytes, the towers'
weights, the pixels they are given and the arithmetic. A stale file is therefore never found; there
is nothing to invalidate. Writers do not lock: each writes a sibling and renames it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from vistoken.core.errors import DataError, UsageError
from vistoken.core.files import write_atomically, writing
from vistoken.core.tables import split_media
from vistoken.models.pipeline import anchor_rows

if TYPE_CHECKING:
    from vistoken.models.modeling import VistokenForConditionalGeneration
    from vistoken.models.processing import VistokenProcessor

Compute = Literal["float32", "bfloat16"]

_FORMAT = 1
_VIEW_TABLE = "view_table"


@dataclass(frozen=True)
class CachedImage:
    """What the connector needs of one image.

    Attributes:
        tower_features: For each anchor view one map (R, C, width) per tower, float16.
        view_table: (V, K) int64, all views of the image.
    """

    tower_features: list[tuple[Tensor, ...]]
    view_table: Tensor


@dataclass(frozen=True)
class FillReport:
    """What :meth:`FeatureCache.fill` did."""

    images: int
    encoded: int
    seconds: float

    @property
    def images_per_second(self) -> float:
        """Encoded images per second; 0 when every image was there."""
        return self.encoded / self.seconds if self.encoded else 0.0


class FeatureCache:
    """Frozen towers' features of images, one safetensors file per image.

    Args:
        root: Folder of the cache; shared by all set-ups, made when needed.
        model: The model whose towers encode; they must stay as they are while this object lives.
        processor: Makes views and pixels.
        compute: Arithmetic of the towers; ``bfloat16`` is autocast over the weights' own dtype.

    Raises:
        UsageError: A tower hands prefix tokens to the connector; they are not cached.
    """

    def __init__(
        self,
        root: Path,
        model: VistokenForConditionalGeneration,
        processor: VistokenProcessor,
        compute: Compute = "float32",
    ) -> None:
        self.root = Path(root)
        self.model = model
        self.processor = processor
        self.compute = compute
        for tower in model.model.plan.spec.towers:
            if tower.kept_prefix:
                raise UsageError(
                    f"tower {tower.name!r} has select: full, and prefix tokens are not cached; "
                    "set cache: null in the run configuration"
                )
        self.fingerprint = self._fingerprint()

    def key(self, image: Path) -> str:
        """Hash of everything that decides this image's features.

        Raises:
            DataError: The file cannot be read.
        """
        try:
            content = Path(image).read_bytes()
        except OSError as error:
            raise DataError(f"image {image} cannot be read: {error.strerror}") from error
        return hashlib.sha256(self.fingerprint.encode() + content).hexdigest()

    def path(self, key: str) -> Path:
        """File of a key; it need not exist."""
        return self.root / self.fingerprint[:16] / key[:2] / f"{key}.safetensors"

    def get(self, image: Path) -> CachedImage:
        """Read an image's features, encoding it first if it is not there."""
        path = self.path(self.key(image))
        if not path.exists():
            self._encode([(Path(image), path)])
        return _read(path)

    def fill(
        self,
        images: Sequence[Path],
        batch: int = 8,
        progress: Callable[[int, int], None] | None = None,
        without: Collection[Path] = (),
    ) -> FillReport:
        """Encode every image that is not there yet.

        Args:
            images: Image files; a sequence that reads them from somewhere is gone through once.
            batch: Images per pass of the towers.
            progress: Called with the number done and the total.
            without: Images to pass over.
        """
        start = time.perf_counter()
        waiting: dict[Path, Path] = {}  # cache file -> image; equal pictures share a file
        done = encoded = 0

        def encode() -> None:
            nonlocal encoded
            if waiting:
                self._encode([(image, path) for path, image in waiting.items()])
                encoded += len(waiting)
                waiting.clear()
                if progress is not None:
                    progress(done, len(images))

        for image in images:
            done += 1
            if image in without:
                continue
            path = self.path(self.key(image))
            if path not in waiting and not path.exists():
                waiting[path] = Path(image)
            if len(waiting) == batch:
                encode()
        encode()
        return FillReport(done, encoded, time.perf_counter() - start)

    @torch.no_grad()
    def _encode(self, items: Sequence[tuple[Path, Path]]) -> None:
        inputs = self.processor.image_processor([str(image) for image, _ in items])
        tables = split_media(inputs["view_table"])
        device = next(self.model.model.vision_tower.parameters()).device
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.compute == "bfloat16"):
            features, _ = self.model.model.encode(inputs["pixel_values"], inputs["view_table"])
        start = 0
        for (_, path), table in zip(items, tables, strict=True):
            stop = start + len(anchor_rows(table))
            _write(path, CachedImage(features[start:stop], table))
            start = stop

    def _fingerprint(self) -> str:
        spec = self.processor.image_processor.spec
        layers = self.model.model.config.vision_config.feature_layers()
        settings = {
            "format": _FORMAT,
            "towers": [asdict(tower) for tower in spec.towers],
            "feature_layers": layers,
            "views": [spec.views.part, dict(spec.views.options)],
            "compute": self.compute,
            "weights": hash_weights(self.model.model.vision_tower),
        }
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def hash_weights(module: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of a module's tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fast_compute() -> Compute:
    """The faster arithmetic for frozen towers here: bfloat16 where the hardware has it."""
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    # mkldnn also calls bfloat16 supported where it is emulated, which is slower than float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if native else "float32"


def _write(path: Path, image: CachedImage) -> None:
    tensors = {_VIEW_TABLE: image.view_table.contiguous()}
    for number, maps in enumerate(image.tower_features):
        for tower, feature_map in enumerate(maps):
            half = feature_map.detach().to("cpu", torch.float16)
            if not torch.isfinite(half).all():
                raise ValueError(f"tower {tower} gave features that float16 cannot hold")
            tensors[f"{number}.{tower}"] = half.contiguous()
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, save(tensors))


def _read(path: Path) -> CachedImage:
    with safe_open(path, framework="pt") as file:
        table = file.get_tensor(_VIEW_TABLE)
        places = sorted(
            tuple(int(number) for number in name.split("."))
            for name in file.keys()  # noqa: SIM118 - not a mapping
            if name != _VIEW_TABLE
        )
        anchors: dict[int, list[Tensor]] = {}
        for anchor, tower in places:
            anchors.setdefault(anchor, []).append(file.get_tensor(f"{anchor}.{tower}"))
    return CachedImage([tuple(maps) for maps in anchors.values()], table)
