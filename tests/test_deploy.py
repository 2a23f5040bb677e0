"""What can be seen of the Dockerfiles and the unit without building or starting them."""

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from typer.main import get_command

from vistoken.cli.main import app

ROOT = Path(__file__).parents[1]
DOCKERFILES = sorted((ROOT / "deploy").glob("*.Dockerfile"))
UNIT = ROOT / "deploy" / "vistoken.service"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def instructions(path):
    """Pairs of a Dockerfile's instruction and its arguments, continued lines joined."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in whole.splitlines() if line.strip()]


def of(path, name):
    return [words for instruction, words in instructions(path) if instruction == name]


def options_of(*words):
    """Let the program's own parser read a command line; nothing is run."""
    command = get_command(app)
    for number, word in enumerate(words):
        if not hasattr(command, "commands"):
            break
        command, rest = command.commands[word], list(words[number + 1 :])
    context = command.make_context(words[0], rest)
    # `serve` hands what it does not know to vLLM, so the parser alone would take any word
    assert context.args == []
    return context.params


def keys(section):
    """Pairs of a section of the unit; a name may stand several times."""
    body = UNIT.read_text().split(f"[{section}]\n")[1].split("\n[")[0]
    return [tuple(line.split("=", 1)) for line in body.splitlines() if re.match(r"\w+=", line)]


def test_there_is_an_image_for_each_kind_of_machine():
    assert [path.name for path in DOCKERFILES] == ["cpu.Dockerfile", "cuda.Dockerfile"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
class TestDockerfile:
    def test_what_it_copies_is_there(self, path):
        copied = [source for line in of(path, "COPY") for source in line.split()[:-1]]
        assert {"constraints.txt", "pyproject.toml", "src"} <= set(copied)
        assert [source for source in copied if not (ROOT / source).exists()] == []

    def test_what_the_build_reads_is_copied(self, path):
        copied = {source for line in of(path, "COPY") for source in line.split()[:-1]}
        project = PROJECT["project"]
        assert {project["readme"], *project["license-files"]} <= copied
        for package in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
            assert Path(package).parts[0] in copied

    def test_the_extras_exist_and_hold_what_the_server_needs(self, path):
        (extras,) = re.findall(r"'\.\[([\w,]+)\]'", path.read_text())
        known = PROJECT["project"]["optional-dependencies"]
        assert set(extras.split(",")) <= known.keys()
        assert {"serve", "nano"} <= set(extras.split(","))

    def test_torch_is_pinned_by_the_line_it_looks_for(self, path):
        (pattern,) = re.findall(r"grep '([^']+)' constraints\.txt", path.read_text())
        lines = (ROOT / "constraints.txt").read_text().splitlines()
        assert len([line for line in lines if re.match(pattern, line)]) == 1

    def test_python_is_a_supported_one(self, path):
        (image,) = of(path, "FROM")
        version = re.fullmatch(r"python:(3\.\d+)-slim", image)[1]
        assert f"Programming Language :: Python :: {version}" in PROJECT["project"]["classifiers"]

    def test_the_commands_are_the_programs(self, path):
        words = [json.loads(of(path, name)[0]) for name in ("ENTRYPOINT", "CMD")]
        program, *rest = words[0] + words[1]
        assert program in PROJECT["project"]["scripts"]
        told = options_of(*rest)
        assert told["host"] == "0.0.0.0"
        (port,) = of(path, "EXPOSE")
        assert told["port"] == int(port)
        for line in of(path, "RUN"):
            if line.startswith("vistoken "):
                assert options_of(*shlex.split(line)[1:])["what"] == "nano"

    def test_the_health_check_is_python_and_asks_a_path_that_needs_no_key(self, path):
        (line,) = of(path, "HEALTHCHECK")
        command = json.loads(line.partition("CMD ")[2])
        assert command[:2] == ["python", "-c"]
        compile(command[2], "HEALTHCHECK", "exec")
        (port,) = of(path, "EXPOSE")
        assert f"http://127.0.0.1:{port}/health" in command[2]


def test_the_unit_starts_the_program_with_options_that_it_has():
    (line,) = [value for name, value in keys("Service") if name == "ExecStart"]
    program, *rest = shlex.split(line)
    assert Path(program).name in PROJECT["project"]["scripts"]
    told = options_of(*rest)
    assert (told["model"], told["port"]) == (["nano"], 8000)
    # the credential that systemd hands over is the one that is read
    (credential,) = [value for name, value in keys("Service") if name == "LoadCredential"]
    assert told["api_key_file"].name == credential.partition(":")[0]


def test_the_unit_outwaits_the_server():
    service = dict(keys("Service"))
    (exec_start,) = [value for name, value in keys("Service") if name == "ExecStart"]
    told = options_of(*shlex.split(exec_start)[1:])
    assert int(service["TimeoutStopSec"]) > told["shutdown_timeout"]
    assert service["RestartPreventExitStatus"].split() == ["2", "3", "4", "5"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_understands_the_unit(tmp_path):
    def verify(text):
        path = tmp_path / "vistoken.service"
        # the program is not where an operator puts it
        path.write_text(text.replace("/opt/vistoken/bin/vistoken", "/bin/true"))
        words = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(path)]
        return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)

    done = verify(UNIT.read_text())
    assert (done.returncode, done.stderr) == (0, "")
    assert "KillSignall" in verify(UNIT.read_text().replace("KillSignal", "KillSignall")).stderr


def test_a_wrong_option_would_be_noticed():
    with pytest.raises(AssertionError):
        options_of("serve", "--modell", "nano")
