"""How nano's skills grew while it was trained, and on which questions it still fails.

    python benchmarks/nano_curves.py --log RUN/metrics.jsonl --answers WORK/answers --data SCENES
    python benchmarks/nano_curves.py  # the picture and the tables again, from the committed result

RUN is the folder of a training run, WORK that of `nano_report.py`, SCENES the data of both. A run's
log holds exact match over the latest 200 questions of each kind, taken before the step that learns
from them. In a first pass over the data no scene comes twice, so the curves are of unseen scenes.
The result goes into benchmarks/results, the picture into docs/assets, the tables to the screen.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from paired import sha256, write

from vistoken.eval.records import Record, Results
from vistoken.eval.scoring import bootstrap_mean

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks/results/nano_curves.json"
PICTURE = ROOT / "docs/assets/nano-curves.png"
KINDS = ("colour", "presence", "name1", "nameN", "relation", "count-of", "count")
SPLITS = ("val", "style")
EVERY = 100
"""Steps between points of a curve."""

Row = dict[str, Any]


def main() -> None:
    """Read a log and answers, or what was read before; write picture and tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--log", type=Path, help="metrics.jsonl of the run")
    parser.add_argument("--answers", type=Path, help="folder of answers of nano_report.py")
    parser.add_argument("--data", type=Path, help="folder of the scenes")
    parser.add_argument("--stage", default="joint")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args()
    if options.log is not None:
        if options.answers is None or options.data is None:
            raise SystemExit("--log needs --answers and --data beside it")
        log = [json.loads(line) for line in options.log.read_text(encoding="utf-8").splitlines()]
        result = {
            "what": "exact match over the latest 200 questions of a kind while nano was trained, "
            "and of its answers to test questions by wording, direction and number",
            "interval": "95 %, bootstrap over pictures",
            "log": sha256(options.log),
            "curves": curves(log, options.stage),
            "answers": {
                split: breakdown(*answered(options.answers / split, options.data, split))
                for split in SPLITS
            },
        }
        write(options.out, result)
    result = json.loads(options.out.read_text(encoding="utf-8"))
    print(tables(result))
    draw(result["curves"], options.picture)


def curves(log: Sequence[Row], stage: str) -> dict[str, Any]:
    """Every hundredth step of a stage: questions seen and exact match by kind."""
    points = [
        entry
        for entry in log
        if entry["stage"] == stage and "questions" in entry and entry["step"] % EVERY == 0
    ]
    return {
        "steps": [point["step"] for point in points],
        "questions": [point["questions"] for point in points],
        "epoch": round(points[-1]["epoch"], 3),
        "exact": {
            kind: [round(point[f"exact/{kind}"], 3) for point in points]
            for kind in KINDS
            if all(f"exact/{kind}" in point for point in points)
        },
    }


def answered(folder: Path, data: Path, split: str) -> tuple[list[Record], dict[str, Row]]:
    """Answers to a split's questions, and the rows they answer by id."""
    lines = (data / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return Results(folder).records(), {row["id"]: row for row in map(json.loads, lines)}


def breakdown(records: Sequence[Record], rows: dict[str, Row]) -> dict[str, Any]:
    """Exact match of relations, places and counts by what sets questions of a kind apart."""

    def wording(row: Row) -> str:
        return f"{row['phrasing']} wording"

    def axis(row: Row) -> str:
        return "above, below" if row["direction"] in ("above", "below") else "left, right"

    def both(row: Row) -> str:
        return f"{axis(row)}, {wording(row)}"

    def things(row: Row) -> str:
        return "three and more" if row["things"] > 2 else ("", "one", "two")[row["things"]]

    cuts: dict[str, tuple[Callable[[Row], str], ...]] = {
        "relation": (wording, axis, both),
        "nameN": (wording, axis),
        "count": (wording, things),
        "count-of": (wording,),
    }
    found: dict[str, Any] = {}
    for kind, parts in cuts.items():
        mine = [record for record in records if record.kind == kind]
        groups: dict[str, list[Record]] = {}
        for part in parts:
            for record in mine:
                groups.setdefault(part(rows[record.id]), []).append(record)
        found[kind] = {name: share(groups[name]) for name in sorted(groups)}
    found["wrong"] = {
        "relation": dict(
            Counter(
                wrong_name(record, rows[record.id])
                for record in records
                if record.kind == "relation" and not record.right
            )
        ),
        "count": dict(
            Counter(
                record.answer
                for record in records
                if record.kind == "count" and rows[record.id]["things"] > 2
            ).most_common()
        ),
    }
    return found


def share(records: Sequence[Record]) -> dict[str, Any]:
    """Right answers among some questions, with their interval."""
    mean = bootstrap_mean([float(r.right) for r in records], [r.cluster for r in records])
    return {"n": mean.n} | {k: round(getattr(mean, k), 4) for k in ("value", "low", "high")}


def wrong_name(record: Record, row: Row) -> str:
    """Whether a wrong answer begins as the other thing's name, or as neither.

    Of a wrong answer only the beginning is known; it counts where a word of the question begins so.
    """
    parts = row["messages"][0]["content"]
    question = " ".join(part["text"] for part in parts if part["type"] == "text").casefold()
    said = record.answer.casefold().split()
    named = said[-1].strip(".,") if said else ""
    words = [word.strip("?.,:;") for word in question.split()]
    return "the other thing" if any(w.startswith(named) for w in words if named) else "neither"


def tables(result: Row) -> str:
    """The result in Markdown."""
    grown = result["curves"]
    chosen = [n for n, step in enumerate(grown["steps"]) if step in (100, grown["steps"][-1])]
    chosen += [n for n, step in enumerate(grown["steps"]) if step % 500 == 0]
    places = sorted(set(chosen))
    lines = [
        "| Questions seen | " + " | ".join(f"{grown['questions'][n]:,}" for n in places) + " |",
        "| --- |" + " --: |" * len(places),
    ]
    for kind, values in grown["exact"].items():
        lines.append(f"| `{kind}` | " + " | ".join(f"{100 * values[n]:.0f}" for n in places) + " |")
    lines += ["", "| Test questions | `val` | `style` |", "| --- | --: | --: |"]
    first = result["answers"][SPLITS[0]]
    for kind, groups in first.items():
        if kind == "wrong":
            continue
        for name in groups:
            cells = [_cell(result["answers"][split][kind].get(name)) for split in SPLITS]
            lines.append(f"| `{kind}`, {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(found: Row | None) -> str:
    if found is None:
        return ""
    value, low, high = (100 * found[name] for name in ("value", "low", "high"))
    return f"{value:.0f} [{low:.0f}, {high:.0f}] (n {found['n']})"


def draw(grown: Row, path: Path) -> None:
    """One line per kind of question, named at its end."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.4), dpi=110)
    thousands = [questions / 1000 for questions in grown["questions"]]
    ends: list[float] = []
    for kind, values in sorted(grown["exact"].items(), key=lambda item: -item[1][-1]):
        bold = kind in ("relation", "count", "count-of")
        percent = [100 * value for value in values]
        (line,) = axes.plot(thousands, percent, linewidth=2.2 if bold else 1.1)
        # names of lines that end close together are set one below the other
        ends.append(min(percent[-1], ends[-1] - 6 if ends else 100))
        axes.text(thousands[-1] * 1.01, ends[-1], kind, color=line.get_color(), va="center")
    axes.set(
        xlabel="questions seen, thousands",
        ylabel="exact answers, percent",
        xlim=(0, thousands[-1] * 1.16),
        ylim=(0, 103),
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Software": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
