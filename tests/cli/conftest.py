"""Running the program in this process, and checkpoints to run it on."""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def data(self):
        return json.loads(self.out)

    def failed(self, code, *words):
        """The one line on the error stream, after checking code and words."""
        lines = self.err.strip().splitlines()
        assert self.code == code, self
        assert len(lines) == 1, self
        assert lines[0].startswith("error: "), self
        assert "Traceback" not in self.err + self.out
        for word in words:
            assert word in lines[0], f"{word!r} is not in {lines[0]!r}"
        return lines[0]


@pytest.fixture
def vistoken(capsys, monkeypatch):
    """Run a command line as the program does, without a process of its own."""
    from vistoken.cli.main import run

    def call(*arguments, stdin=""):
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture
def image(tmp_path, picture):
    """A picture file, 60x90 pixels."""
    path = tmp_path / "picture.png"
    picture(60, 90).save(path)
    return path


@pytest.fixture(scope="session")
def full_checkpoint(tmp_path_factory, pico) -> Path:
    """A full checkpoint of pico; do not change it."""
    from vistoken.models.checkpoint import save_full

    out = tmp_path_factory.mktemp("checkpoints") / "full"
    save_full(*pico, out)
    return out
