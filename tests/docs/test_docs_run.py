"""Run what README and documentation show.

Python blocks of a page run in order in one namespace; shell blocks (```console, ```bash) run where
`<!-- run -->` stands before them. `<!-- skip: reason -->` before a Python block leaves it out, and
`<!-- needs: nano -->` on a page skips it where the nano weights were not fetched.
"""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHELLS = ("console", "bash")
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)[^\n]*$")
MARK = re.compile(r"^\s*<!--\s*(?P<name>run|skip|needs)(?::\s*(?P<value>.+?))?\s*-->\s*$")
KNOWN_NEEDS = {"nano"}


@dataclass(frozen=True)
class Block:
    """One fenced block, the marks directly before it, and the line its text starts on."""

    language: str
    text: str
    line: int
    marks: tuple[str, ...]


@dataclass(frozen=True)
class Page:
    """The blocks of one page and what the page needs."""

    blocks: tuple[Block, ...]
    needs: frozenset[str]


def read_page(text: str) -> Page:
    blocks: list[Block] = []
    needs: set[str] = set()
    marks: list[str] = []
    lines = iter(enumerate(text.splitlines(), start=1))
    for number, line in lines:
        mark = MARK.match(line)
        if mark and mark["name"] == "needs":
            needs.add(mark["value"])
        elif mark:
            marks.append(mark["name"])
        elif fence := FENCE.match(line):
            body = []
            for _, inner in lines:
                if inner.strip() == "```":
                    break
                body.append(inner.removeprefix(fence["indent"]))
            else:
                raise ValueError(f"the block that opens on line {number} is never closed")
            blocks.append(Block(fence["language"], "\n".join(body), number + 1, tuple(marks)))
            marks = []
        elif line.strip():
            marks = []
    return Page(tuple(blocks), frozenset(needs))


def runnable(page: Page) -> list[Block]:
    return [
        block
        for block in page.blocks
        if (block.language == "python" and "skip" not in block.marks)
        or (block.language in SHELLS and "run" in block.marks)
    ]


def commands_of(block: Block) -> list[str]:
    """Commands of a shell block; in one with prompts, the other lines are output."""
    joined = block.text.replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if line.strip()]
    prompted = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return prompted or [line for line in lines if not line.startswith("#")]


def run_shell(block: Block, folder: Path, where: str) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
    }
    for command in commands_of(block):
        program, *rest = shlex.split(command, comments=True)
        if program == "vistoken":  # the program of this environment, not another on the PATH
            program, rest = sys.executable, ["-m", "vistoken", *rest]
        result = subprocess.run(
            [program, *rest],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert result.returncode == 0, f"{where}: {command}\n{result.stdout}\n{result.stderr}"


def run_python(block: Block, namespace: dict[str, object], page: str) -> None:
    # Blank lines in front make a traceback point at the page's own line.
    source = "\n" * (block.line - 1) + block.text
    exec(compile(source, page, "exec"), namespace)


def missing(needs: frozenset[str]) -> str:
    unknown = needs - KNOWN_NEEDS
    assert not unknown, f"unknown needs: {sorted(unknown)}"
    if "nano" in needs:
        nano_parts = pytest.importorskip(
            "vistoken.convert.nano_parts", reason="the nano extra is not installed"
        )
        if not nano_parts.nano_parts_ready():
            return "nano weights were not fetched (run `make setup`)"
    return ""


PAGES_THAT_RUN = [path for path in PAGES if runnable(read_page(path.read_text("utf-8")))]


@pytest.mark.parametrize("path", PAGES_THAT_RUN, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_page_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = read_page(path.read_text("utf-8"))
    reason = missing(page.needs)
    if reason:
        pytest.skip(reason)
    # Pages name files under examples/; whatever they write goes to the temporary folder.
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    name = path.relative_to(ROOT).as_posix()
    namespace: dict[str, object] = {"__name__": "__docs__"}
    for block in runnable(page):
        if block.language == "python":
            run_python(block, namespace, name)
        else:
            run_shell(block, tmp_path, f"{name}:{block.line}")


def test_some_page_runs_without_weights() -> None:
    assert any(not read_page(path.read_text("utf-8")).needs for path in PAGES_THAT_RUN)


def test_marks_and_blocks_are_read() -> None:
    page = read_page(
        "<!-- needs: nano -->\n\n<!-- run -->\n```console\n$ first \\\n  --flag\noutput\n```\n"
        "text\n<!-- skip: needs a GPU -->\n```python\nraise SystemExit\n```\n"
        "```bash\nnever\n```\n  ```python\n  x = 1\n  ```\n"
    )
    assert page.needs == {"nano"}
    assert [block.text for block in runnable(page)][1:] == ["x = 1"]
    assert [command.split() for command in commands_of(runnable(page)[0])] == [["first", "--flag"]]


def test_failing_block_fails_with_the_line_of_the_page() -> None:
    block = read_page("title\n\n```python\nx = 1\nassert x == 2\n```\n").blocks[0]
    with pytest.raises(AssertionError) as caught:
        run_python(block, {}, "page.md")
    assert caught.traceback[-1].lineno + 1 == 5


def test_failing_command_fails(tmp_path: Path) -> None:
    block = Block("bash", f"{shlex.quote(sys.executable)} -c 'raise SystemExit(3)'", 1, ("run",))
    with pytest.raises(AssertionError, match=r"page\.md:1"):
        run_shell(block, tmp_path, "page.md:1")


def test_unclosed_block_is_an_error() -> None:
    with pytest.raises(ValueError, match="line 1 is never closed"):
        read_page("```python\nx = 1\n")
