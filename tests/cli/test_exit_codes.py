"""The program itself, as a process: what each fault ends it with, and the one sentence it says."""

import json
import os
import resource
import subprocess
import sys
import zipfile

import pytest
from PIL import Image

from vistoken.convert.nano_parts import PARTS

from .conftest import Outcome

pytestmark = pytest.mark.slow  # every test starts at least one process
STAGE = {"name": "joint", "steps": 1, "groups": {"connector": {"train": "full", "lr": 1e-3}}}


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Run `vistoken` in a process of its own, without network, files limited to so many bytes."""
    home = tmp_path_factory.mktemp("home")

    def call(*arguments, file_bytes=None, **environment):
        def limit():
            # a write beyond the limit fails as it does where a quota or the disk is used up
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

        done = subprocess.run(
            [sys.executable, "-m", "vistoken", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=120,
            preexec_fn=limit if file_bytes else None,
            env={
                **os.environ,
                "HF_HUB_OFFLINE": "1",
                "OMP_NUM_THREADS": "1",
                "CUDA_VISIBLE_DEVICES": "",
                "VISTOKEN_HOME": str(home),
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                "PIP_NO_INDEX": "1",
                "PIP_CONFIG_FILE": os.devnull,
                **environment,
            },
        )
        return Outcome(done.returncode, done.stdout, _ours(done.stderr))

    return call


def _ours(text):
    """The error stream without the notes of libraries, and of a run before its error."""
    assert "Traceback" not in text
    return "".join(line for line in text.splitlines(True) if line.startswith("error: "))


def sample(name, picture="0.png", answer="cup"):
    question = [{"type": "image", "path": picture}, {"type": "text", "text": "What is it?"}]
    return {
        "id": name,
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ],
    }


@pytest.fixture(scope="module")
def run_file(tmp_path_factory):
    """Write a run of a file of rows into a folder of its own."""

    def write(*rows, **stage):
        root = tmp_path_factory.mktemp("run")
        Image.new("RGB", (64, 64), "red").save(root / "0.png")
        (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        run = {
            "recipe": "pico",
            "data": [str(root / "rows.jsonl")],
            "output": str(root / "out"),
            "precision": "float32",
            "stages": [{**STAGE, **stage}],
        }
        (root / "run.yaml").write_text(json.dumps(run))
        return root / "run.yaml"

    return write


@pytest.fixture(scope="module")
def trained(program, run_file):
    """A finished run of one step."""
    path = run_file(sample("a"))
    outcome = program("train", path, "--device", "cpu")
    assert outcome.code == 0, outcome
    return path


def test_a_loss_that_is_no_number(program, run_file):
    groups = {"connector": {"train": "full", "lr": 1e38}}
    path = run_file(sample("a"), steps=4, warmup=0.0, save_every=1, groups=groups)
    said = program("train", path, "--device", "cpu").failed(3, "stage 'joint'", "is nan at step")
    assert "sample 'a'" in said
    assert f"{path.parent}/out/stages/joint/checkpoint-" in said
    assert not (path.parent / "out" / "model").exists()


def test_a_full_disk(program, run_file):
    path = run_file(sample("a"))
    outcome = program("train", path, "--device", "cpu", file_bytes=20_000)
    outcome.failed(5, "the disk is full", f"{path.parent}/out", "free some space")
    assert not list((path.parent / "out" / "stages" / "joint").glob("checkpoint-*"))


def test_a_changed_configuration(program, trained):
    words = ("train", trained, "seed=7", "--resume", "--device", "cpu")
    program(*words).failed(2, "seed", "7", "--allow-changes")


def test_a_picture_that_is_not_there(program, run_file):
    path = run_file(sample("a"), sample("b", "gone.png"))
    outcome = program("train", path, "--device", "cpu")
    outcome.failed(3, "rows.jsonl, line 2", "sample 'b'", "gone.png does not exist")


def test_nothing_to_learn_from(program, run_file):
    path = run_file(sample("a", answer=""))
    outcome = program("train", path, "--device", "cpu")
    outcome.failed(3, "rows.jsonl, line 1", "sample 'a'", "text is empty")


def test_weights_that_were_cut_off(program, trained):
    model = trained.parent / "out" / "model"
    (weights,) = model.glob("*.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    outcome = program("chat", "-m", model, "--max-new-tokens", 1, trained.parent / "0.png", "What?")
    weights.write_bytes(whole)
    outcome.failed(4, str(weights))


@pytest.mark.parametrize(("arrives", "code"), [("another", 4), ("half", 5)])
def test_a_download_that_is_not_what_was_pinned_or_ends_early(program, tmp_path, arrives, code):
    pin = PARTS[0].pin
    name = pin.name.replace("-", "_")
    wheel = tmp_path / f"{name}-{pin.version}-py3-none-any.whl"
    about = f"{name}-{pin.version}.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        words = f"Metadata-Version: 2.1\nName: {pin.name}\nVersion: {pin.version}\n"
        archive.writestr(f"{about}/METADATA", words)
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    if arrives == "half":
        wheel.write_bytes(wheel.read_bytes()[: wheel.stat().st_size // 2])
    found = {"PIP_FIND_LINKS": str(tmp_path), "VISTOKEN_HOME": str(tmp_path / "home")}
    program("data", "fetch", "nano", **found).failed(code, pin.name, pin.version)
    assert not list((tmp_path / "home").rglob("*.safetensors"))
    assert not list((tmp_path / "home").rglob(".partial-*"))
