"""Create a virtual environment for this repository and install the project into it.

Run by `make`; needs nothing but the standard library. A torch that is already there is kept: one
inside the environment, or one of the chosen Python itself when no torchvision comes with it.
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUPPORTED = [(3, 11), (3, 12), (3, 13)]
OLDEST_TORCH = (2, 6)
# Beside a CPU build of torch these fail at import and take transformers down with them.
UNWANTED = ("torchvision", "torchaudio", "torchcodec")
PROBE_TORCH = (
    "import importlib.metadata as m, importlib.util as u\n"
    f"bad = any(u.find_spec(n) for n in {UNWANTED!r})\n"
    "print('' if bad or not u.find_spec('torch') else m.version('torch'))"
)


def main() -> None:
    arguments = read_arguments()
    check_python()
    venv = (ROOT / arguments.venv).resolve()
    python = venv / "bin" / "python"
    if not python.exists():
        create_environment(venv)
    torch = torch_version(python)
    if torch:
        say(f"keeping torch {torch}, which is already there")
    constraints = write_constraints(venv, torch, arguments.override)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if not torch:
        say("installing torch (the largest download)")
        run([*pip, "-c", str(constraints), "torch"])
    say(f"installing vistoken with extras {arguments.extras}; this takes some minutes")
    # gradio (extra `serve`) and trackio (`dev`, `track`) hold Pillow below 13, and so does
    # constraints.txt. The pixels of released code were recorded with Pillow 13, which .ci/run
    # puts into its second environment: there the tests compare exactly.
    run([*pip, "-c", str(constraints), "-e", f"{ROOT}[{arguments.extras}]"])
    say(f"environment ready in {venv.relative_to(ROOT)}")


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", default=".venv", help="folder of the environment")
    parser.add_argument("--extras", default="all,dev,docs", help="extras to install")
    parser.add_argument(
        "--override",
        action="append",
        default=[],
        metavar="NAME==VERSION",
        help="a version to use instead of the one in constraints.txt (may be repeated)",
    )
    return parser.parse_args()


def check_python() -> None:
    version = sys.version_info[:2]
    if version not in SUPPORTED:
        fail(
            f"Python {version[0]}.{version[1]} is not supported (3.11 to 3.13 are); "
            "install one of those and run make again with PYTHON=/path/to/python3.11"
        )
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            fail(
                f"this Python ({sys.executable}) lacks the standard module {module!r}; on Debian "
                f"or Ubuntu install python{version[0]}.{version[1]}-venv, elsewhere pass "
                "PYTHON=/path/to/a/complete/python"
            )


def create_environment(venv: Path) -> None:
    # Only a plain interpreter can lend its torch: an environment made from another environment
    # would see the packages of the interpreter below it instead.
    is_plain = sys.prefix == sys.base_prefix
    lent = torch_version(Path(sys.executable)) if is_plain else ""
    say(f"creating {venv.name} with {sys.executable}")
    command = [sys.executable, "-m", "venv", *(["--system-site-packages"] if lent else []), venv]
    # A failed attempt must not look like an environment to the next run.
    if subprocess.run([str(part) for part in command], check=False).returncode:
        shutil.rmtree(venv, ignore_errors=True)
        fail(f"could not create the environment {venv}; see the message above")


def torch_version(python: Path) -> str:
    """Give the version of a torch that can be kept, or an empty string."""
    result = subprocess.run(
        [str(python), "-c", PROBE_TORCH], capture_output=True, text=True, check=False
    )
    version = result.stdout.strip()
    return version if version and release_of(version) >= OLDEST_TORCH else ""


def release_of(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2])


def write_constraints(venv: Path, torch: str, overrides: list[str]) -> Path:
    """Copy constraints.txt with the kept torch and the overrides in place of its own lines."""
    chosen = {line.split("==")[0]: line for line in overrides}
    if torch:
        chosen.setdefault("torch", f"torch=={torch}")
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    merged = [line for line in lines if line.split("==")[0] not in chosen] + list(chosen.values())
    target = venv / "constraints.txt"
    temporary = target.with_suffix(".partial")
    temporary.write_text("\n".join(merged) + "\n", encoding="utf-8")
    os.replace(temporary, target)
    return target


def run(command: list[str]) -> None:
    if subprocess.run(command, check=False).returncode:
        fail(
            "pip could not install the packages; see its message above. Without a connection, "
            "point pip's own configuration at a local index and run make again"
        )


def say(text: str) -> None:
    print(f"set-up: {text}", flush=True)


def fail(text: str) -> None:
    raise SystemExit(f"set-up: {text}.")


if __name__ == "__main__":
    main()
