"""Finding the models that a release builds on: inside it, beside it, or on the hub."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)

from vistoken.core.errors import MachineError, WeightsError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# weights for other frameworks double the download
_UNWANTED = ["*.h5", "*.msgpack", "*.onnx", "*.tflite", "*.gguf", "*.md", "*.png", "*.jpg"]


def locate_source(
    release: Path, named: str | None, given: str | Path | None, what: str, option: str
) -> Path:
    """Find a model that a release builds on.

    Args:
        release: The release directory.
        named: What its config calls the model: a path, a folder's name or a hub id.
        given: What the user named instead, if anything.
        what: How to call the model in errors.
        option: The command-line option that names it.

    Returns:
        A local directory with a ``config.json``.

    Raises:
        WeightsError: It is nowhere.
    """
    if given is not None:
        return _given(given, what, option)
    if not named:
        raise WeightsError(f"{release}/config.json names no {what}; name one with {option}")
    for place in _places(release, named):
        if (place / "config.json").is_file():
            return place.resolve()
    if looks_like_hub_id(named):
        return fetch(named, f"the {what} of {release}", f"name a local one with {option}")
    raise WeightsError(
        f"the {what} {named!r} of {release} is neither inside nor beside it; name it with {option}"
    )


def find_local(release: Path, named: str | None) -> Path | None:
    """Where a model that a release builds on lies on this machine; nothing is fetched."""
    if not named:
        return None
    for place in _places(release, named):
        if (place / "config.json").is_file():
            return place.resolve()
    if not looks_like_hub_id(named):
        return None
    try:
        return Path(snapshot_download(named, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def looks_like_hub_id(name: str) -> bool:
    """Whether a name has the form ``owner/name``."""
    return _HUB_ID.fullmatch(name) is not None and not name.startswith((".", "~"))


def fetch(hub_id: str, what: str, fix: str) -> Path:
    """Download a model from the hub, or take it from the hub's local cache.

    Args:
        hub_id: ``owner/name``.
        what: How to call it in errors.
        fix: What to do when the hub cannot be reached.

    Raises:
        MachineError: The hub cannot be reached, or offline mode is on and it is not cached.
        WeightsError: The hub has no such model, or does not give it.
    """
    try:
        return Path(snapshot_download(hub_id, ignore_patterns=_UNWANTED))
    except HFValidationError as error:
        raise WeightsError(f"{what}, {hub_id!r}, is no valid hub id; {fix}") from error
    except HfHubHTTPError as error:
        raise WeightsError(
            f"{what}, {hub_id!r}, is not on the hub or not open to you; {fix}"
        ) from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, OSError) as error:
        raise MachineError(
            f"{what}, {hub_id!r}, is not cached and the hub cannot be reached; {fix}"
        ) from error
    except Exception as error:
        # the hub client lets its HTTP library's own connection errors through
        raise MachineError(f"{what}, {hub_id!r}, could not be fetched ({error}); {fix}") from error


def _given(given: str | Path, what: str, option: str) -> Path:
    path = Path(given).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise WeightsError(f"{path}, given as {option}, has no config.json; it is no {what}")
        return path.resolve()
    if looks_like_hub_id(str(given)):
        return fetch(str(given), f"the {what} given as {option}", "name a local directory")
    raise WeightsError(f"{path}, given as {option}, does not exist; name the {what}'s directory")


def _places(release: Path, named: str) -> list[Path]:
    """Inside the release, then beside it, then the path itself."""
    last = Path(named).name
    places = [release / last, release.resolve().parent / last]
    if Path(named).is_absolute():
        places.append(Path(named))
    return places
