"""`vistoken doctor`: finds faults of the environment and says how to fix them."""

from __future__ import annotations

from dataclasses import asdict

import typer

from vistoken.cli.checks import Finding, examine
from vistoken.cli.console import JsonOption, say, say_json
from vistoken.core.errors import MachineError

_MARKS = {"ok": "ok     ", "warning": "warning", "broken": "BROKEN "}


def doctor(as_json: JsonOption = False) -> None:
    """Check Python, libraries, device, cache, disk and memory; exit code 5 if something is broken.

    Every fault comes with its fix.
    """
    findings = examine()
    broken = any(finding.state == "broken" for finding in findings)
    if as_json:
        say_json({"healthy": not broken, "findings": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            _show(finding)
    if broken:
        raise typer.Exit(MachineError.exit_code)


def _show(finding: Finding) -> None:
    say(f"{_MARKS[finding.state]}  {finding.name}: {finding.found}")
    if finding.fix:
        say(f"         fix: {finding.fix}")
