"""Find untidy text files and oversized files among those given, or among all that git tracks."""

import re
import subprocess
import sys
from pathlib import Path

LARGEST_BYTES = 2_000_000
# The trained connector and LoRA of nano are the one large thing that belongs here.
ASSETS = "src/vistoken/assets/"
LARGEST_ASSET_BYTES = 42_000_000
BINARY = {".safetensors", ".png", ".jpg", ".gif", ".npy", ".bin", ".model", ".tiff", ".webp"}
CONFLICT = re.compile(r"^(<{7} |>{7} |={7}$)", re.MULTILINE)
PERSONAL_PATH = re.compile(r"/(?:home|Users)/[a-z]\w*/")


def main() -> None:
    names = sys.argv[1:] or tracked_files()
    problems = [problem for name in names for problem in problems_of(Path(name))]
    if problems:
        raise SystemExit("\n".join(problems))


def tracked_files() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.split("\0") if name]


def problems_of(path: Path) -> list[str]:
    if not path.is_file() or path.is_symlink():
        return []
    size = path.stat().st_size
    limit = LARGEST_ASSET_BYTES if path.as_posix().startswith(ASSETS) else LARGEST_BYTES
    found = [f"{path}: {size} bytes, more than {limit}"] if size > limit else []
    if path.suffix in BINARY or "golden" in path.parts:
        return found
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        # Test data may be deliberately broken; code and documentation may not.
        return found if "tests" in path.parts else [*found, f"{path}: not UTF-8"]
    return found + problems_of_text(path, text)


def problems_of_text(path: Path, text: str) -> list[str]:
    found = []
    if "\r" in text:
        found.append(f"{path}: carriage returns")
    if text and not text.endswith("\n"):
        found.append(f"{path}: no newline at the end")
    if CONFLICT.search(text):
        found.append(f"{path}: merge conflict marker")
    if PERSONAL_PATH.search(text):
        found.append(f"{path}: path of somebody's home folder")
    for number, line in enumerate(text.splitlines(), start=1):
        if line != line.rstrip():
            found.append(f"{path}:{number}: trailing blanks")
    return found


if __name__ == "__main__":
    main()
