"""Names of models become checkpoint directories of ours, converted at most once."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import vistoken
from vistoken.convert import resolve
from vistoken.convert.resolve import resolve_model
from vistoken.core.errors import MachineError, WeightsError

RELEASE = Path(__file__).parents[1] / "golden" / "llava-sp" / "release_pooling"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("VISTOKEN_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def release(tmp_path):
    """A copy of a release, its base and its tower."""
    shutil.copytree(RELEASE, tmp_path / "golden")
    return tmp_path / "golden" / "llava-sp-pooling-lora"


def test_a_release_is_converted_once(release, cache, monkeypatch) -> None:
    first = resolve_model(release)
    assert cache in first.parents
    monkeypatch.setattr(resolve, "convert_llava_sp", None)  # a second call would fail
    assert resolve_model(str(release)) == first
    assert resolve_model(first) == first


def test_a_changed_release_is_converted_again(release) -> None:
    first = resolve_model(release)
    config = release / "config.json"
    config.write_text(config.read_text() + "\n")
    assert resolve_model(release) != first


@pytest.mark.parametrize("part", ["tiny-vicuna", "tiny-clip"])
def test_a_moved_part_is_converted_again(release, part) -> None:
    first = resolve_model(release)
    shutil.move(release.parent / part, release / part)  # inside a release is a place, too
    assert resolve_model(release) != first
    vistoken.load(release, device="cpu", dtype="float32")


@pytest.mark.parametrize("part", ["tiny-vicuna", "tiny-clip"])
def test_a_changed_part_is_converted_again(release, part) -> None:
    first = resolve_model(release)
    path = release.parent / part / "model.safetensors"
    save_file({k: v + 1 for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
    assert resolve_model(release) != first
    vistoken.load(release, device="cpu", dtype="float32")


def test_a_copy_with_broken_references_is_made_again(release) -> None:
    first = resolve_model(release)
    path = first / "references.json"
    intact = path.read_text()
    path.write_text(intact.replace("tiny-vicuna", "gone"))
    assert resolve_model(release) == first
    assert path.read_text() == intact


def test_load_takes_a_release(release) -> None:
    model, _ = vistoken.load(release, device="cpu", dtype="float32")
    assert model.config.image_token_id == 600
    assert not any("lora_" in name for name, _ in model.named_parameters())


def test_a_failed_conversion_leaves_no_cache_entry(release, cache) -> None:
    (release / "non_lora_trainables.bin").unlink()
    with pytest.raises(WeightsError, match="non_lora_trainables"):
        resolve_model(release)
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_an_unreachable_hub_is_said_so() -> None:
    with pytest.raises(MachineError, match="'nobody/nothing'.*not cached"):
        resolve_model("nobody/nothing")


@pytest.mark.parametrize(
    ("name", "words"), [("no-such-thing", "no model"), (RELEASE / "tiny-vicuna", "'llama'")]
)
def test_what_is_no_model_is_said_so(name, words) -> None:
    with pytest.raises(WeightsError, match=words):
        resolve_model(name)
