"""Every example in README.md works as it stands: each runs in a process of its own, as a reader would run it."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tidy.readme import Example, commands, python_examples

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
DEADLINE_S = 120.0  # against an example that hangs

# Commands that are shown and not run here, by how they begin, each with the reason.
NOT_RUN = {
    "git clone ": "needs the network",
    "cd ": "means nothing to a process of its own",
    "pip install ": "needs the network",
    "shmpool inspect gossip": "needs a pool of that name with processes in it; tests/unit/test_cli.py makes such pools",
    "python3 tools/dev.py test": "is what runs this test",
    "python3 tools/dev.py demo": "takes both cores for a minute; tests/worker runs its parts",
    "python3 tools/dev.py bench": "measures for minutes, and beside other tests it would measure them",
}

text = README.read_text() if README.exists() else ""


@pytest.fixture
def alone_on_this_host() -> Iterator[None]:
    """Examples use plain names such as "gossip", so they take turns, with other runs on this host too."""
    descriptor = os.open("/dev/shm", os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
    os.close(descriptor)


def run_python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a Python example from a file, because multiprocessing's spawn wants one."""
    script = folder / "example.py"
    script.write_text(code)
    return run([sys.executable, "-W", "error", str(script)], folder)


def run_command(command: str) -> subprocess.CompletedProcess[str]:
    return run(["bash", "-euo", "pipefail", "-c", command], ROOT)


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    return subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def reason_not_to_run(command: str) -> str | None:
    return next((reason for start, reason in NOT_RUN.items() if f"{command} ".startswith(start)), None)


def test_readme_shows_python_and_both_commands() -> None:
    shown = [example.code for example in commands(text)]

    assert python_examples(text)
    assert any(command.startswith("python3 tools/dev.py demo") for command in shown)
    assert any(command.startswith("python3 tools/dev.py test") for command in shown)


@pytest.mark.usefixtures("alone_on_this_host")
@pytest.mark.parametrize("example", python_examples(text), ids=str)
def test_python_example_runs(example: Example, tmp_path: Path) -> None:
    result = run_python(example.code, tmp_path)

    assert result.returncode == 0, result.stdout


@pytest.mark.usefixtures("alone_on_this_host")
def test_commands_run() -> None:
    shown = [example for example in commands(text) if not reason_not_to_run(example.code)]

    failed = {str(example): result.stdout for example in shown if (result := run_command(example.code)).returncode}

    assert failed == {}


SAMPLE = """\
```python
1 / 0
```
```console
$ first --option \\
    value
its output
$ second
```
text
```bash
# a comment
third | fourth
```
```
not an example
```
"""


def test_examples_are_found_with_their_lines() -> None:
    assert python_examples(SAMPLE) == [Example(2, "1 / 0\n")]
    assert commands(SAMPLE) == [
        Example(5, "first --option value"),
        Example(8, "second"),
        Example(13, "third | fourth"),
    ]


def test_failing_python_example_is_noticed(tmp_path: Path) -> None:
    result = run_python(python_examples(SAMPLE)[0].code, tmp_path)

    assert result.returncode != 0
    assert "ZeroDivisionError" in result.stdout


def test_failing_command_is_noticed_in_a_pipe_too() -> None:
    assert run_command("false | cat").returncode != 0


def test_only_the_listed_commands_are_not_run() -> None:
    assert reason_not_to_run("python3 tools/dev.py demo --shards 4")
    assert reason_not_to_run("python3 tools/dev.py test")
    assert reason_not_to_run("python3 -m shmpool inspect gossip") is None
