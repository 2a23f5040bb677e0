"""How long training waits for its data, read from the logs of runs.

    python benchmarks/data_wait.py RUN [RUN ...] [--out FILE]

``metrics.jsonl`` of every run says which share of its steps' time no batch was there
(``data_share``). This collects the shares stage by stage: their median and the largest, and the
seconds of a step beside them. Whether pictures were decoded in that time or came from a feature
cache is in the run's ``config.yaml``.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import yaml
from paired import machine, write

RESULT = Path(__file__).parent / "results" / "data_wait.json"


def waits(run: Path) -> list[dict[str, Any]]:
    """Shares of a run's stages.

    Args:
        run: Folder of a run with ``metrics.jsonl`` and ``config.yaml``.
    """
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    logged = [record for record in map(json.loads, lines) if "data_share" in record]
    return [
        {
            "recipe": Path(config["recipe"]).stem,
            "stage": stage,
            "cached_features": config["cache"] is not None,
            "log_lines": len(records),
            "step_s": round(statistics.median(r["step_seconds"] for r in records), 3),
            "share_median": round(statistics.median(r["data_share"] for r in records), 4),
            "share_largest": round(max(r["data_share"] for r in records), 4),
        }
        for stage in dict.fromkeys(record["stage"] for record in logged)
        for records in [[record for record in logged if record["stage"] == stage]]
    ]


def main() -> None:
    """Collect, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    found = [stage for run in options.runs for stage in waits(run)]
    for stage in found:
        print("  ".join(f"{name} {value}" for name, value in stage.items()))
    write(
        options.out,
        {
            "what": "share of the steps' time in which training waited for a batch",
            "bar": 0.2,
            "stages": found,
            "machine": machine(),
        },
    )


if __name__ == "__main__":
    main()
