"""What the logs of a run say about waiting, stage by stage."""

import json

from data_wait import waits


def test_shares_are_those_of_each_stage(tmp_path):
    (tmp_path / "config.yaml").write_text("recipe: some/where/small.yaml\ncache: features\n")
    records = [
        {"stage": stage, "step_seconds": 2.0, "data_share": share}
        for stage, share in (("align", 0.3), ("joint", 0.01), ("joint", 0.03), ("joint", 0.02))
    ]
    records.append({"stage": "joint", "retrieval/names": 0.5})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    align, joint = waits(tmp_path)
    assert (align["stage"], align["share_median"], align["log_lines"]) == ("align", 0.3, 1)
    assert (joint["share_median"], joint["share_largest"], joint["log_lines"]) == (0.02, 0.03, 3)
    assert (joint["recipe"], joint["cached_features"]) == ("small", True)
