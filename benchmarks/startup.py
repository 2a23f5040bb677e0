"""How long `import vistoken` and the help of every command take.

    python benchmarks/startup.py [--rounds 5] [--out FILE]

Fresh processes, in turns with `python -c pass`, which says how much of a time is Python itself.
Budgets: `import vistoken` < 0.3 s, `vistoken --help` < 1 s.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from paired import Times, compare, machine, take_turns, write
from typer.core import TyperGroup
from typer.main import get_command

from vistoken.cli.main import app

BASE = "python -c pass"
BUDGETS_S = {"import vistoken": 0.3, "vistoken --help": 1.0}
RESULT = Path(__file__).parent / "results" / "startup.json"


def verbs(group: TyperGroup, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command and group of the program, as words."""
    for name, command in group.commands.items():
        yield (*before, name)
        if isinstance(command, TyperGroup):
            yield from verbs(command, (*before, name))


def commands() -> dict[str, list[str]]:
    """What is timed: its name -> arguments of Python."""
    timed = {
        BASE: ["-c", "pass"],
        "import vistoken": ["-c", "import vistoken"],
        "vistoken --help": ["-m", "vistoken", "--help"],
    }
    program = get_command(app)
    if not isinstance(program, TyperGroup):
        raise TypeError("the program has no commands")
    for verb in verbs(program):
        timed[f"vistoken {' '.join(verb)} --help"] = ["-m", "vistoken", *verb, "--help"]
    return timed


def run_once(arguments: list[str]) -> Times:
    """Seconds of one process: on the clock, and of a core (which other load does not stretch)."""
    started, before = time.perf_counter(), _core_seconds()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return {"wall": time.perf_counter() - started, "cpu": _core_seconds() - before}


def _core_seconds() -> float:
    """Seconds that finished child processes have computed."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    timed = commands()
    measured = take_turns(
        {name: partial(run_once, arguments) for name, arguments in timed.items()},
        rounds=options.rounds,
        warmup=1,
    )
    rows = {
        name: {phase: compare(seconds, measured[BASE][phase]) for phase, seconds in times.items()}
        for name, times in measured.items()
        if name != BASE
    }
    result = {
        "what": "a fresh process / python -c pass",
        "budgets_s": BUDGETS_S,
        "rounds": options.rounds,
        "rows": rows,
        "machine": machine(),
    }
    write(options.out, result)
    for name, row in rows.items():
        wall, cpu = row["wall"], row["cpu"]
        seconds = f"{wall['ms'] / 1e3:6.2f} s ({cpu['ms'] / 1e3:.2f} s of a core)"
        ratio = f"{wall['ratio']:6.2f}  [{wall['low']:.2f}, {wall['high']:.2f}]"
        print(f"{name:38} {seconds} {ratio}")


if __name__ == "__main__":
    main()
