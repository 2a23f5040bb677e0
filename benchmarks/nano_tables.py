"""The tables of nano's model card, from the result of `nano_report.py`.

python benchmarks/nano_tables.py [RESULT.json] [CARD.md]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from card import table, write_between


def write_tables(card: Path, result: Mapping[str, Any]) -> str:
    """Put all tables between the marks of a card and return them."""
    return write_between(card, tables(result))


def tables(result: Mapping[str, Any]) -> str:
    """Accuracy of every split, then how it answers, then the language model."""
    accuracy = table(result["accuracy"]).replace("nano_accuracy.py", "nano_report.py")
    return "\n\n".join([accuracy, answers(result), language(result)])


def answers(result: Mapping[str, Any]) -> str:
    """How nano answers, beyond right and wrong."""
    lines = ["**How it answers**", "", "| | n | share |", "| --- | --: | --: |"]
    for split, found in result["absent"].items():
        for name, what in (
            ("absent", "asked about a thing that is not there, says so"),
            ("there", "asked about a thing that is there, denies it"),
        ):
            if name in found:
                shown = _percent(found[name]["denied"])
                lines.append(f"| {what} (`{split}`) | {found[name]['n']} | {shown} |")
    for name, found in result["one_word"].items():
        share = found["sentence" if name.startswith("a sentence") else "one_word"]
        lines.append(f"| asked for {name}, gives it | {found['n']} | {100 * share:.0f} |")
    rows = {
        "nano, no picture": result["chat"]["nano"],
        "the untouched language model, no picture": result["chat"]["base"],
        "nano, open requests about pictures": result["picture_chat"],
    }
    for name, found in rows.items():
        for key, what in (("at_limit", "does not end within"), ("loops", "goes round in circles")):
            within = f" {found['longest']} tokens" if key == "at_limit" else ""
            share = 100 * found[key] / found["n"]
            lines.append(f"| free answer {what}{within} ({name}) | {found['n']} | {share:.0f} |")
    return "\n".join(lines)


def language(result: Mapping[str, Any]) -> str:
    """Perplexity beside the untouched language model."""
    found = result["language"]
    ratio, measured = found["ratio"], found["perplexity"]
    return (
        f"**Language model** on {found['tokens']:,} tokens of {found['text']} of this repository: "
        f"perplexity {measured['nano']:.2f}, untouched {measured['base']:.2f}; "
        f"ratio {ratio['value']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]."
    )


def _percent(share: Mapping[str, float]) -> str:
    value, low, high = (100 * share[name] for name in ("value", "low", "high"))
    return f"{value:.0f} [{low:.0f}, {high:.0f}]"


def main() -> None:
    """Print the tables of a result, or write them into a card."""
    folder = Path(__file__).parent / "results"
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else folder / "nano_report.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    print(write_tables(Path(sys.argv[2]), result) if len(sys.argv) > 2 else tables(result))


if __name__ == "__main__":
    main()
