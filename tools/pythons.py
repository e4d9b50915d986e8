"""Run the pool's tests on every Python of this machine that the package supports.

    python tools/pythons.py [--python PATH ...] [--venvs FOLDER] [--json] [--save] [-- PYTEST-ARGS]

Looks for python3.N on PATH and in pyenv's versions, makes an environment for each one of another version and build, installs
the package with what its tests need, and runs tests/unit, tests/property and tests/stress there. Exit status 1 if any fails.
With --venvs the environments are kept in that folder, and found there the next time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Final

from rich.console import Console
from rich.table import Table

ROOT: Final = Path(__file__).resolve().parent.parent
RESULTS: Final = Path(__file__).parent / "results"
OLDEST: Final = (3, 11)
TESTS: Final = ("tests/unit", "tests/property", "tests/stress")
NOT_NEEDED: Final = ("matplotlib", "mypy", "ruff", "shmpool")  # of the package's dev extra; the last is the package itself
ASK: Final = "import sys; print(*sys.version_info[:3], sys.version.replace(chr(10), ' '), sep='|')"
HOW_LONG_S: Final = 3600


@dataclass(frozen=True)
class Python:
    """An interpreter: where it is, and what it says of itself."""

    path: Path
    version: tuple[int, ...]
    build: str

    @property
    def label(self) -> str:
        return ".".join(map(str, self.version))


@dataclass
class Result:
    """What pytest said on one Python. `failed` counts errors too."""

    python: str
    build: str
    passed: int = 0
    skipped: int = 0
    failed: int = 0
    seconds: float = 0.0
    trouble: str = ""

    @property
    def is_good(self) -> bool:
        return self.passed > 0 and not self.failed and not self.trouble


def main() -> int:
    options = parse()
    console = Console(stderr=True)
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="shmpool-pythons-") as temporary:
        folder = (options.venvs or Path(temporary)).resolve()
        pythons = find(options.python)
        try:
            for python in pythons:
                with console.status(f"Python {python.label}, {len(results) + 1} of {len(pythons)}"):
                    results.append(run(python, folder, options.pytest))
                console.print(f"Python {python.label}: {verdict(results[-1])}")
        except KeyboardInterrupt:
            console.print(f"Stopped after {len(results)} of {len(pythons)} Pythons.")
    record = {
        "command": " ".join(["python", "tools/" + Path(sys.argv[0]).name, *map(without_folder, sys.argv[1:])]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "pythons": [asdict(result) for result in results],
    }
    if options.save:
        (RESULTS / "pythons.json").write_text(json.dumps(record, indent=2) + "\n")
    if options.json:
        print(json.dumps(record, indent=2))
    else:
        Console().print(tabulate(results))
    return 0 if results and len(results) == len(pythons) and all(result.is_good for result in results) else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run the pool's tests on every Python of this machine.")
    parser.add_argument("--python", type=Path, action="append", help="this one only; may be given again")
    parser.add_argument("--venvs", type=Path, help="keep the environments in this folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--save", action="store_true", help="keep it in tools/results/pythons.json too")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, after --; by default -n auto and the pool's tests")
    return parser.parse_args()


def find(given: list[Path] | None) -> list[Python]:
    """The supported interpreters, each once however many names it has, oldest first."""
    found: dict[tuple[tuple[int, ...], str], Python] = {}
    for path in given or candidates():
        python = ask(path)
        if python is not None and python.version >= OLDEST:
            found.setdefault((python.version, python.build), python)
    return sorted(found.values(), key=lambda python: python.version)


def candidates() -> Iterator[Path]:
    for folder in map(Path, os.get_exec_path()):
        if folder.name == "shims":  # pyenv's, which choose one of its versions by where they are called
            yield from sorted((folder.parent / "versions").glob("*/bin/python3"))
        else:
            yield from sorted(each for each in folder.glob("python3.*") if re.fullmatch(r"python3\.\d+", each.name))


def ask(path: Path) -> Python | None:
    try:
        said = subprocess.run([path, "-c", ASK], capture_output=True, text=True, timeout=60, check=True).stdout
        major, minor, micro, build = said.strip().split("|", 3)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return Python(path, (int(major), int(minor), int(micro)), build)


def run(python: Python, folder: Path, arguments: list[str]) -> Result:
    """Install the package for one Python, and run its tests there."""
    result, start = Result(python.label, python.build), monotonic()
    venv = folder / f"{python.label}-{abs(hash_of(python.build)):08x}"
    try:
        install(python, venv)
        chosen = arguments or ["-n", "auto", *TESTS]
        command: list[str | Path] = [venv / "bin" / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen]
        ended = subprocess.run(
            command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=HOW_LONG_S,
            check=False, stdin=subprocess.DEVNULL,
        )
    except subprocess.SubprocessError as error:
        result.trouble = f"{error}\n{getattr(error, 'stderr', None) or ''}"[-2000:]
    else:
        read(ended.stdout, result)
        if ended.returncode:
            result.trouble = (ended.stdout + ended.stderr)[-2000:]
    result.seconds = round(monotonic() - start, 1)
    return result


def hash_of(build: str) -> int:
    """The same in every run, which Python's own hash() is not."""
    return int.from_bytes(build.encode(), "big") % 0xFFFF_FFFB


def install(python: Python, venv: Path) -> None:
    if not (venv / "installed").exists():
        call([python.path, "-m", "venv", "--clear", "--without-pip", venv])
        # An environment without ensurepip (Debian's Python) is filled from outside, by the pip of the Python that runs this.
        pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", venv / "bin" / "python", "install", "--quiet"]
        call([*pip, "--editable", f"{ROOT}[cli]", *needed()])
        (venv / "installed").touch()


def without_folder(argument: str) -> str:
    """What is kept names no folder of this machine."""
    return Path(argument).name if argument.startswith("/") else argument


def needed() -> list[str]:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["dev"]
    return [each for each in extras if not each.startswith(NOT_NEEDED)]


def call(command: list[str | Path]) -> None:
    subprocess.run(command, capture_output=True, text=True, timeout=HOW_LONG_S, check=True, stdin=subprocess.DEVNULL)


def read(output: str, result: Result) -> None:
    """Pytest's closing line."""
    closing = output.strip().rpartition("\n")[2]
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|skipped|failed|error)", closing)}
    result.passed, result.skipped = counts.get("passed", 0), counts.get("skipped", 0)
    result.failed = counts.get("failed", 0) + counts.get("error", 0)


def verdict(result: Result) -> str:
    return f"{result.passed} passed, {result.skipped} skipped, {result.failed} failed in {result.seconds:.0f} s"


def tabulate(results: list[Result]) -> Table:
    table = Table(title="The pool's tests on this machine's Pythons")
    for heading in ("Python", "build", "passed", "skipped", "failed", "s"):
        table.add_column(heading, justify="left" if heading == "build" else "right")
    for result in results:
        counts = map(str, (result.passed, result.skipped, result.failed, f"{result.seconds:.0f}"))
        table.add_row(result.python, result.build[:60], *counts)
        if result.trouble:
            table.add_row("", result.trouble[-600:])
    return table


if __name__ == "__main__":
    sys.exit(main())
