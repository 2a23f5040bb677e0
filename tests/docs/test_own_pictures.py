"""The four commands of the fine-tuning page, as they stand there, on twenty pictures."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "fine-tune.md"
PICTURES = 20


def documented_commands() -> list[str]:
    blocks = [block.partition("```")[0] for block in PAGE.read_text("utf-8").split("```console\n")]
    (block,) = [block for block in blocks if block.startswith("vistoken data check")]
    return block.strip().splitlines()


@pytest.fixture
def own_pictures(tmp_path) -> Path:
    """A folder with ``pictures`` and ``my.json`` in LLaVA's form, one question per picture."""
    from vistoken.data.scenes import make_scenes

    make_scenes(tmp_path / "scenes", scenes={"train": PICTURES}, seed=3, source="shapes")
    (tmp_path / "pictures").mkdir()
    lines = (tmp_path / "scenes" / "train.jsonl").read_text("utf-8").splitlines()
    records, seen = [], set()
    for row in map(json.loads, lines):
        (picture, asked), said = row["messages"][0]["content"], row["messages"][1]["content"][0]
        if picture["path"] in seen:
            continue
        name = f"{len(seen)}.jpg"
        seen.add(picture["path"])
        shutil.copy(tmp_path / "scenes" / picture["path"], tmp_path / "pictures" / name)
        turns = [
            {"from": "human", "value": f"<image>\n{asked['text']}"},
            {"from": "gpt", "value": said["text"]},
        ]
        records.append({"id": row["id"], "image": name, "conversations": turns})
    assert len(records) == PICTURES
    (tmp_path / "my.json").write_text(json.dumps(records))
    return tmp_path


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    program, *words = shlex.split(command)
    assert program == "vistoken"
    return subprocess.run(
        [sys.executable, "-m", "vistoken", *words],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def test_the_page_has_four_commands_in_order() -> None:
    verbs = [command.split()[1] for command in documented_commands()]
    assert verbs == ["data", "train", "merge", "chat"]


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_four_commands_from_pictures_to_an_answer(own_pictures) -> None:
    from vistoken.convert.nano_parts import nano_parts, nano_parts_ready

    if not nano_parts_ready():
        pytest.skip("nano weights were not fetched (run `make setup`)")
    said = []
    for command in documented_commands():
        done = run(command, own_pictures)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        said.append(done)
    check, train, _, chat = said
    assert f"{PICTURES} samples (llava)" in check.stdout
    assert "vistoken chat --model run/model" in train.stdout
    assert "vistoken merge run/model" in train.stdout
    assert chat.stdout.strip()

    lines = (own_pictures / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    losses = [line["loss"] for line in map(json.loads, lines) if "loss" in line]
    assert losses[-1] < losses[0] / 2, losses  # it learned its twenty answers

    # what was trained is what the merged directory holds
    layer = "model.language_model.layers.0.self_attn.q_proj"
    trained = load_file(own_pictures / "run" / "stages" / "tune" / "trained.safetensors")
    a, b = (trained[f"{layer}.lora_{half}.default.weight"].float() for half in "AB")
    base = {}
    for file in nano_parts().language_model.glob("*.safetensors"):
        base |= load_file(file)
    adapted = base["model.layers.0.self_attn.q_proj.weight"].float() + 64 / 32 * b @ a
    merged = load_file(own_pictures / "mine" / "model.safetensors")
    torch.testing.assert_close(merged[f"{layer}.weight"].float(), adapted, atol=5e-3, rtol=1e-2)
    assert not any("lora" in name for name in merged)
