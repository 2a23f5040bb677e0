"""`study` as a program: the plan, what it refuses, and a cell of its own."""

from __future__ import annotations

import pytest


@pytest.mark.slow
def test_the_plan_of_the_packages_study(vistoken, tmp_path):
    plan = vistoken("study", "spatial-tokens", "--size", "small", "--dry-run", "--json").data
    assert plan["cells"][:2] == ["mlp/0", "sp-cropping/0"]
    assert len(plan["cells"]) == 3 * len(plan["arms"])
    assert plan["arms"]["sp-pooling"]["connect_flops"] > plan["arms"]["mlp"]["connect_flops"]
    shown = vistoken(
        "study", "spatial-tokens", "--size", "small", "--dry-run", "--only", "mlp/1", "-o", tmp_path
    )
    assert "would run 1 cells" in shown.out
    assert not list(tmp_path.iterdir())


def test_what_it_refuses(vistoken, tmp_path):
    vistoken("study", "spatial-token").failed(2, "did you mean 'spatial-tokens'")
    vistoken("study", "spatial-tokens", "--only", "mpl", "--dry-run").failed(2, "no such cell")
    vistoken("study", "spatial-tokens", "--size", "tiny", "--dry-run").failed(2, "no size 'tiny'")
    vistoken("study", "spatial-tokens", "steps", "--dry-run").failed(2, "must look like")
    vistoken("study", "spatial-tokens", "--data", tmp_path, "-o", tmp_path / "out").failed(
        3, "train.jsonl does not exist"
    )
