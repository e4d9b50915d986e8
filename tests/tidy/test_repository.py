"""What lies in the repository: the agreed top level, and nothing that is true on one machine only."""

import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

TOP_LEVEL = {".ci", ".gitignore", "LICENSE", "README.md", "pyproject.toml", "shmpool", "tests", "tools", "worker"}

MACHINE_PATH = re.compile(r"/(?:home|root|Users|work|opt)/|[.]pyenv|\b[A-Z]:\\")


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """Paths of the files under version control."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    listing = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [name for name in listing.split("\0") if name and (ROOT / name).exists()]


def top_level(names: Iterable[str]) -> set[str]:
    return {name.partition("/")[0] for name in names}


def machine_paths(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if MACHINE_PATH.search(line)]


def test_top_level_is_exactly_the_agreed_entries(tracked: list[str]) -> None:
    assert top_level(tracked) == TOP_LEVEL


def test_ci_is_one_executable_script(tracked: list[str]) -> None:
    assert [name for name in tracked if name.startswith(".ci/")] == [".ci/run"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_no_file_names_a_path_of_somebodys_machine(tracked: list[str]) -> None:
    found = {name: machine_paths((ROOT / name).read_text(errors="replace")) for name in tracked}

    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize("folder", ["home", "root", "Users", "opt"])
def test_path_of_a_machine_is_recognised(folder: str) -> None:
    line = "/".join(("", folder, "somebody", "file"))

    assert machine_paths(f"sound\n  {line}\n") == [line]


def test_paths_of_every_linux_machine_are_sound() -> None:
    assert machine_paths("/dev/shm /proc/self/fd ../opt tests/worker/test_bus.py /eth2/6a95a1a9/beacon_block") == []
