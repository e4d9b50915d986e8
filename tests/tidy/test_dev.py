"""tools/dev.py where nothing is installed: run for real on a small project, with stand-ins for pip and the tools."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DEV = Path(__file__).resolve().parents[2] / "tools" / "dev.py"

# Modules that hide the installed ones. pip works from outside `.venv` only, as on a Debian without python3-venv, notes
# each install and, like the real one, is not done in an instant: it starts a process or two.
STAND_INS = {
    "ensurepip": "raise ImportError",
    "pip": """\
import os, subprocess, sys
if "--python" not in sys.argv or os.environ.get("PIP_IS") == "missing":
    sys.exit(1)
if "install" in sys.argv:
    with open(os.environ["PIP_LOG"], "a") as log:
        log.write(" ".join(sys.argv[1:]) + "\\n")
    subprocess.run([sys.executable, "-c", ""], check=True)
    unable = {"broken": True, "without rivals": "bench" in sys.argv[-1]}
    sys.exit(unable.get(os.environ.get("PIP_IS"), False))
""",
    "ruff": "",
    "mypy": "import os, sys\nprint('mypy has something to say')\nsys.exit(int(os.environ.get('MYPY_STATUS', 0)))",
    "pytest": "import os, sys\nprint('=== 3 passed ===')\nsys.exit(int(os.environ.get('PYTEST_STATUS', 0)))",
}


class Project:
    """A folder with tools/dev.py, a pyproject.toml and one benchmark, and no `.venv` yet."""

    def __init__(self, root: Path) -> None:
        self.root = root / "project"
        self.log = root / "pip.log"
        self.stand_ins = root / "stand-ins"
        for folder in (self.root / "tools", self.stand_ins):
            folder.mkdir(parents=True)
        shutil.copy(DEV, self.root / "tools" / "dev.py")
        (self.root / "pyproject.toml").write_text("# as first installed\n")
        (self.root / "shmpool").mkdir()
        (self.root / "shmpool" / "_engine.c").write_text("/* as first built */\n")
        (self.root / "tools" / "bench_one.py").write_text("import sys; print('bench', sys.prefix, sys.argv[1:])")
        for name, code in STAND_INS.items():
            (self.stand_ins / f"{name}.py").write_text(code)

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        environment = os.environ | {"PYTHONPATH": str(self.stand_ins), "PIP_LOG": str(self.log)} | variables
        command = [sys.executable, str(self.root / "tools" / "dev.py"), *arguments]
        return subprocess.Popen(command, env=environment, cwd="/", text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def run(self, *arguments: str, **variables: str) -> tuple[int, str]:
        """(exit status, what it printed)"""
        process = self.start(*arguments, **variables)
        printed, _ = process.communicate(timeout=60)
        return process.returncode, printed

    def installs(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_first_run_makes_venv_and_installs_into_it(project: Project) -> None:
    status, printed = project.run("bench", "one", "--size", "3")

    assert status == 0, printed
    assert f"bench {project.root / '.venv'} ['--size', '3']" in printed
    assert len(project.installs()) == 1
    assert f"--python {project.root / '.venv' / 'bin' / 'python'} install" in project.installs()[0]


def test_second_run_installs_nothing(project: Project) -> None:
    project.run("bench")

    status, _ = project.run("bench")

    assert status == 0
    assert len(project.installs()) == 1


@pytest.mark.parametrize("path", ["pyproject.toml", "shmpool/_engine.c"])
def test_what_decides_the_install_is_installed_again_when_it_changed(project: Project, path: str) -> None:
    project.run("bench")

    (project.root / path).write_text("something else\n")
    status, _ = project.run("bench")

    assert status == 0
    assert len(project.installs()) == 2


def test_runs_that_start_together_install_once(project: Project) -> None:
    processes = [project.start("bench") for _ in range(3)]

    outcomes = [(process.communicate(timeout=60), process.returncode) for process in processes]

    assert [status for _, status in outcomes] == [0, 0, 0], outcomes
    assert len(project.installs()) == 1


@pytest.mark.parametrize("command", ["bench", "test"])
def test_failed_install_says_so_and_is_tried_again(project: Project, command: str) -> None:
    status, printed = project.run(command, PIP_IS="broken")
    tried = len(project.installs())

    assert status == 1
    assert "pip could not install" in printed
    assert "bench /" not in printed
    assert "passed" not in printed

    status, _ = project.run(command)

    assert status == 0
    assert len(project.installs()) == tried + 1


def test_only_benchmarks_install_the_rivals(project: Project) -> None:
    project.run("test")
    project.run("bench")
    project.run("test")
    project.run("bench")

    assert [install.split()[-1] for install in project.installs()] == [".[worker,dev]", ".[worker,dev,bench]"]


def test_rivals_that_cannot_be_installed_do_not_keep_the_benchmarks_from_running(project: Project) -> None:
    status, printed = project.run("bench", "one", PIP_IS="without rivals")

    assert status == 0, printed
    assert "The rivals could not be installed" in printed
    assert f"bench {project.root / '.venv'} []" in printed

    project.run("test")

    assert [install.split()[-1] for install in project.installs()] == [".[worker,dev,bench]", ".[worker,dev]"]


def test_python_without_any_pip_says_what_to_install(project: Project) -> None:
    status, printed = project.run("bench", PIP_IS="missing")

    assert status == 1
    assert "apt install python3-venv" in printed


def test_venv_whose_python_is_gone_is_made_anew(project: Project) -> None:
    project.run("bench")
    (project.root / ".venv" / "bin" / "python").unlink()

    status, printed = project.run("bench", "one")

    assert status == 0, printed
    assert len(project.installs()) == 2


def test_venv_whose_python_was_upgraded_is_filled_again(project: Project) -> None:
    project.run("bench")
    python = project.root / ".venv" / "bin" / "python"
    python.unlink()
    python.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo Python 3.99 && exit\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)

    status, printed = project.run("bench")

    assert status == 0, printed
    assert len(project.installs()) == 2


def test_sound_project_passes_and_every_tool_says_so(project: Project) -> None:
    status, printed = project.run("test")

    assert status == 0, printed
    assert {"ruff passed", "mypy passed", "=== 3 passed ==="} <= set(printed.splitlines())
    assert "Failed" not in printed


@pytest.mark.parametrize(
    ("statuses", "expected", "failed"),
    [
        ({"MYPY_STATUS": "1"}, 1, "Failed: mypy."),
        ({"PYTEST_STATUS": "2"}, 2, "Failed: pytest."),
        ({"MYPY_STATUS": "1", "PYTEST_STATUS": "2"}, 2, "Failed: mypy, pytest."),
    ],
)
def test_exit_status_of_test_is_the_worst(project: Project, statuses: dict[str, str], expected: int, failed: str) -> None:
    status, printed = project.run("test", **statuses)

    assert status == expected
    assert printed.splitlines()[-1] == failed
    assert ("mypy has something to say" in printed) == ("MYPY_STATUS" in statuses)


@pytest.mark.parametrize("arguments", [[], ["deploy"]])
def test_unknown_command_shows_usage_and_makes_nothing(project: Project, arguments: list[str]) -> None:
    status, printed = project.run(*arguments)

    assert status == 2
    assert printed.startswith("usage: ")
    assert not (project.root / ".venv").exists()


def test_unknown_benchmark_names_the_known_ones(project: Project) -> None:
    status, printed = project.run("bench", "two")

    assert status == 1
    assert "there are: one." in printed


@pytest.mark.parametrize(
    ("disguise", "sentence"),
    [
        ("sys.version_info = (3, 10, 13)", "needs Python 3.11 or newer; this is 3.10"),
        ("sys.platform = 'darwin'", "runs on Linux only"),
    ],
)
def test_wrong_machine_gets_a_sentence(disguise: str, sentence: str) -> None:
    code = f"import runpy, sys\n{disguise}\nrunpy.run_path({str(DEV)!r}, run_name='__main__')"

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert result.returncode == 1
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


def test_old_python_can_parse_it() -> None:
    ast.parse(DEV.read_text(), feature_version=(3, 7))
