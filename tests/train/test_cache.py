import copy
import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from vistoken.core.errors import DataError, MachineError, UsageError
from vistoken.models.image_processing import VistokenImageProcessor
from vistoken.models.processing import VistokenProcessor
from vistoken.train.cache import FeatureCache


@pytest.fixture
def image(data) -> Path:
    return data / "images" / "0.png"


def test_what_is_read_back_is_what_the_towers_gave(pico, tmp_path, image):
    model, processor = pico
    inputs = processor.image_processor([str(image)])
    with torch.no_grad():
        expected, _ = model.model.encode(inputs["pixel_values"], inputs["view_table"])

    cached = FeatureCache(tmp_path, model, processor).get(image)

    assert torch.equal(cached.view_table, inputs["view_table"])
    assert torch.equal(cached.tower_features[0][0], expected[0][0].half())


def test_a_hit_equals_the_miss_and_encodes_nothing(pico, tmp_path, image, monkeypatch):
    model, processor = pico
    cache = FeatureCache(tmp_path, model, processor)
    miss = cache.get(image)
    monkeypatch.setattr(model.model, "encode", None)
    hit = cache.get(image)
    assert torch.equal(hit.tower_features[0][0], miss.tower_features[0][0])
    assert hit.tower_features[0][0].dtype == torch.float16


def test_fill_encodes_each_picture_once(pico, tmp_path, data, image):
    cache = FeatureCache(tmp_path, *pico)
    seen = []
    twice = [data / "images" / f"{n}.png" for n in (0, 1, 2, 0)]
    report = cache.fill(twice, batch=2, progress=lambda done, total: seen.append((done, total)))
    assert (report.images, report.encoded) == (4, 3)
    assert seen == [(2, 4), (4, 4)]
    assert cache.fill(twice).encoded == 0


def test_a_batch_gives_each_picture_its_own_features(pico, tmp_path, data):
    images = [data / "images" / f"{n}.png" for n in range(3)]
    together = FeatureCache(tmp_path / "a", *pico)
    together.fill(images, batch=3)
    alone = FeatureCache(tmp_path / "b", *pico)
    for path in images:
        torch.testing.assert_close(
            together.get(path).tower_features[0][0],
            alone.get(path).tower_features[0][0],
            atol=2e-3,
            rtol=2e-3,
        )


def test_the_key_follows_pixels_weights_views_and_arithmetic(pico, tmp_path, data, image):
    model, processor = pico
    base = FeatureCache(tmp_path, model, processor)
    other_model = copy.deepcopy(model)
    with torch.no_grad():
        next(other_model.model.vision_tower.parameters()).add_(1e-3)
    pipeline = copy.deepcopy(processor.image_processor.pipeline)
    pipeline["views"] = {"part": "square", "name": "square", "options": {}}
    other_processor = VistokenProcessor(
        VistokenImageProcessor(pipeline), processor.tokenizer, processor.chat_template
    )
    keys = {
        base.key(image),
        base.key(data / "images" / "1.png"),
        FeatureCache(tmp_path, other_model, processor).key(image),
        FeatureCache(tmp_path, model, other_processor).key(image),
        FeatureCache(tmp_path, model, processor, "bfloat16").key(image),
    }
    assert len(keys) == 5
    assert FeatureCache(tmp_path / "else", model, processor).key(image) == base.key(image)


def test_writers_at_the_same_time_leave_whole_files_only(pico, tmp_path, data):
    images = [data / "images" / f"{n}.png" for n in range(4)]
    threads = [
        threading.Thread(target=FeatureCache(tmp_path, *pico).fill, args=(images,))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 4
    for path in files:
        with safe_open(path, "pt") as file:
            assert set(file.keys()) == {"view_table", "0.0"}


FILL = """
import sys
from pathlib import Path
from vistoken.models.build import build
from vistoken.models.recipe import load_recipe
from vistoken.train.cache import FeatureCache
root, *images = map(Path, sys.argv[1:])
cache = FeatureCache(root, *build(load_recipe("pico")))
print("ready", flush=True)
sys.stdin.readline()
for image in images:
    report = cache.fill([image])
    print(report.encoded, flush=True)
"""


@pytest.mark.slow
def test_processes_that_fill_a_cache_at_the_same_time_leave_whole_files_only(pico, tmp_path, data):
    """Each starts when both are ready, and both mostly encode the same pictures."""
    images = [data / "images" / f"{n}.png" for n in range(4)]
    command = [sys.executable, "-c", FILL, str(tmp_path), *map(str, images)]
    environment = {"OMP_NUM_THREADS": "1", "VISTOKEN_HOME": str(tmp_path / "home"), "PATH": ""}
    writers = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        for _ in range(2)
    ]
    try:
        for writer in writers:
            assert writer.stdout.readline() == "ready\n"
        for writer in writers:
            writer.stdin.write("go\n")
            writer.stdin.flush()
        encoded = [sum(map(int, writer.communicate()[0].split())) for writer in writers]
    finally:
        for writer in writers:
            writer.kill()
    assert [writer.returncode for writer in writers] == [0, 0]
    assert 4 <= sum(encoded) <= 8
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 4
    alone = FeatureCache(tmp_path / "alone", *pico)
    cache = FeatureCache(tmp_path, *pico)
    for image in images:
        assert cache.path(cache.key(image)) in files
        assert torch.equal(
            cache.get(image).tower_features[0][0], alone.get(image).tower_features[0][0]
        )


def test_a_failed_write_leaves_nothing(pico, tmp_path, image, monkeypatch):
    cache = FeatureCache(tmp_path, *pico)
    monkeypatch.setattr("vistoken.core.files.os.replace", _refuse)
    with pytest.raises(OSError, match="full"):
        cache.get(image)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def _refuse(*_):
    raise OSError("disk is full")


@pytest.mark.parametrize(
    ("number", "says"), [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "cannot be written")]
)
def test_what_the_disk_refuses_is_no_bug(pico, tmp_path, image, monkeypatch, number, says):
    """A cache takes megabytes a picture; a full disk is the likeliest end of filling it."""

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("vistoken.core.files.os.replace", refuse)
    with pytest.raises(MachineError, match=says) as caught:
        FeatureCache(tmp_path, *pico).fill([image])
    assert str(tmp_path) in str(caught.value)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_missing_picture_is_named(pico, tmp_path):
    with pytest.raises(DataError, match=r"gone\.png"):
        FeatureCache(tmp_path, *pico).get(tmp_path / "gone.png")


def test_prefix_tokens_cannot_be_cached(pico, tmp_path, monkeypatch):
    model, processor = pico
    tower = copy.copy(model.model.plan.spec.towers[0])
    object.__setattr__(tower, "select", "full")
    spec = copy.copy(model.model.plan.spec)
    object.__setattr__(spec, "towers", (tower,))
    monkeypatch.setattr(model.model.plan, "spec", spec)
    with pytest.raises(UsageError, match="select: full"):
        FeatureCache(tmp_path, model, processor)
