"""What conversions write cannot change without FORMAT: copies in the cache would stay old."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vistoken.convert import resolve
from vistoken.convert.llava import convert_llava_sp
from vistoken.convert.resolve import FORMAT, content_id, resolve_model

GOLDEN = Path(__file__).parents[1] / "golden" / "llava-sp"
RELEASES = {
    "release_pooling": "llava-sp-pooling-lora",
    "release_cropping": "llava-sp-cropping-lora",
    "release_pooling_anyres": "llava-sp-pooling-lora",
}
OURS = ("connector_config", "layout_config", "decoder_config", "image_token_id")

# What each release becomes, by format. A digest that differs means: raise FORMAT in
# convert/resolve.py, and write the new digests under its new number.
DIGESTS = {
    3: {
        "release_pooling": "41e58ba4dbd16744ceea1791acc8d5286987ae05f98e9e9206c6f324449cbb3b",
        "release_cropping": "5ef32f1edd0fb9493b7cb1dcd6eae14fd32b6dcac69972c4cead464a26178a57",
        "release_pooling_anyres": (
            "db2e4eefef2039538ae94568447825d889841da16156062fdf2aac1ef4e2fb76"
        ),
    }
}


def digest(directory: Path) -> str:
    """Of what we decide in a converted checkpoint; sections of other libraries change with them."""
    hasher = hashlib.sha256()
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    hasher.update(json.dumps({name: config[name] for name in OURS}, sort_keys=True).encode())
    hasher.update((directory / "chat_template.jinja").read_bytes())
    processor = json.loads((directory / "processor_config.json").read_text(encoding="utf-8"))
    hasher.update(json.dumps(processor, sort_keys=True).encode())
    for path in sorted(directory.rglob("*.safetensors")):
        hasher.update(str(path.relative_to(directory)).encode())
        for name, tensor in sorted(load_file(path).items()):
            hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            hasher.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()


@pytest.mark.parametrize("name", list(RELEASES))
def test_format_is_raised_with_what_is_written(name: str, tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / name, tmp_path / "golden")
    convert_llava_sp(tmp_path / "golden" / RELEASES[name], tmp_path / "out")
    assert FORMAT in DIGESTS, "write the digests of the new format down, and drop the old ones"
    assert digest(tmp_path / "out") == DIGESTS[FORMAT][name], (
        "conversions write something else than copies in the cache hold: raise FORMAT"
    )


def test_copies_of_an_older_format_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISTOKEN_HOME", str(tmp_path / "home"))
    shutil.copytree(GOLDEN / "release_pooling", tmp_path / "golden")
    release = tmp_path / "golden" / RELEASES["release_pooling"]
    monkeypatch.setattr(resolve, "FORMAT", FORMAT - 1)
    before = content_id(release)
    stale = resolve_model(release)
    (stale / "config.json").write_text("what an older version wrote")
    monkeypatch.setattr(resolve, "FORMAT", FORMAT)
    fresh = resolve_model(release)
    assert content_id(release) != before
    assert fresh != stale
    assert json.loads((fresh / "config.json").read_text())["model_type"] == "vistoken"
