"""Set up `.venv` and run the project's commands in it: `python3 tools/dev.py demo | test | bench [ARGS]`.

Only the standard library is used, because this file runs before anything is installed; and no syntax newer than
Python 3.6's, so that an old Python gets a sentence rather than a SyntaxError.

`.venv` is made when it is missing and filled again when pyproject.toml or a C source has changed. Runs that start together
do that one at a time: one installs, the others wait and find it done.
"""

import sys

if sys.platform != "linux":
    sys.exit("shmpool runs on Linux only: it needs /dev/shm, O_TMPFILE and open-file-description locks.")
if sys.version_info < (3, 11):  # noqa: UP036 - whoever runs this has not passed requires-python yet
    sys.exit("shmpool needs Python 3.11 or newer; this is {}.{} ({}).".format(*sys.version_info[:2], sys.executable))

import contextlib
import fcntl
import hashlib
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "shmpool-installed"  # digest of what is installed; written last, so a half-filled .venv has none
REQUIREMENT = ".[worker,dev]"
RIVALS_STAMP = VENV / "shmpool-rivals-installed"
WITH_RIVALS = ".[worker,dev,bench]"  # for benchmarks only: what the pool is measured beside

USAGE = """\
usage: python3 tools/dev.py COMMAND [ARGS]

  demo [ARGS]            run the gossip demo; `demo --help` lists its options
  test [ARGS]            run ruff, mypy and pytest; ARGS go to pytest
  bench [NAME [ARGS]]    run tools/bench_NAME.py, or all of them

Each first makes .venv if it is missing, and fills it again if pyproject.toml or a C source has changed."""


def main(arguments: list[str]) -> int:
    commands = {"demo": demo, "test": test, "bench": bench}
    if arguments in (["-h"], ["--help"]):
        print(USAGE)
        return 0
    if not arguments or arguments[0] not in commands:
        print(USAGE, file=sys.stderr)
        return 2

    set_up(with_rivals=arguments[0] == "bench")
    return commands[arguments[0]](arguments[1:])


def demo(arguments: list[str]) -> NoReturn:
    become(ROOT / "tools" / "demo.py", arguments)


def test(arguments: list[str]) -> int:
    """Run ruff and mypy beside pytest; return the worst exit status.

    pytest writes to our own stdout, not through a pipe: a process that a failing test has left behind would hold a
    pipe open and hang us. When all is well its closing line is the last one.
    """
    statuses: dict[str, int] = {}
    checks = [
        threading.Thread(target=check, args=(statuses, "ruff", "check", "--quiet", ".")),
        threading.Thread(target=check, args=(statuses, "mypy", "--no-error-summary")),
    ]
    for thread in checks:
        thread.start()
    statuses["pytest"] = run_to_the_end([PYTHON, "-m", "pytest", "-n", "auto", "--dist", "loadgroup", *arguments])
    for thread in checks:
        thread.join()

    failed = sorted(name for name, status in statuses.items() if status)
    if failed:
        print(f"Failed: {', '.join(failed)}.")
    return max(abs(status) for status in statuses.values())


def bench(arguments: list[str]) -> int:
    """Run one benchmark, or all of them one after another: they measure time."""
    scripts = {path.stem.removeprefix("bench_"): path for path in sorted((ROOT / "tools").glob("bench_*.py"))}
    if not arguments:
        return max((abs(run_to_the_end([PYTHON, script])) for script in scripts.values()), default=0)

    if arguments[0] in scripts:
        become(scripts[arguments[0]], arguments[1:])
    sys.exit(f"There is no benchmark {arguments[0]!r}; there are: {', '.join(scripts)}.")


def become(script: Path, arguments: list[str]) -> NoReturn:
    """Replace this process by `script` in `.venv`, so that signals and the exit status are the script's own."""
    os.execv(PYTHON, [str(PYTHON), str(script), *arguments])


def run_to_the_end(command: list[str | Path]) -> int:
    """Run `command` in the project's root. Ctrl-C reaches it too, and it is given the time to clean up."""
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL)
    while True:
        with contextlib.suppress(KeyboardInterrupt):
            return process.wait()


def check(statuses: dict[str, int], tool: str, *arguments: str) -> None:
    """Run a checker and say in one write how it went: pytest is writing too."""
    result = run_quietly([PYTHON, "-m", tool, *arguments])
    statuses[tool] = result.returncode
    print(f"\n{result.stdout}{tool} failed" if result.returncode else f"\n{tool} passed", flush=True)


# Set-up


def set_up(*, with_rivals: bool) -> None:
    """Make `.venv` hold what pyproject.toml asks for; nothing happens if it already does."""
    stamp = RIVALS_STAMP if with_rivals else STAMP
    if installed(stamp) == digest():
        return
    with only_one_at_a_time():
        if installed(stamp) == digest():  # by the run we have waited for
            return
        for each in (STAMP, RIVALS_STAMP):
            each.unlink(missing_ok=True)
        if not works([PYTHON, "--version"]):
            make_environment()
        wanted = digest()  # before the install: pyproject.toml may change meanwhile
        if with_rivals and install_rivals():
            RIVALS_STAMP.write_text(wanted)
        else:
            install()
        STAMP.write_text(wanted)


def digest() -> str:
    """Of all that decides what `.venv` holds.

    That is the project's metadata, its C sources, its place (the install points back at it), and the version of the
    Python behind `.venv`, which may have been upgraded or be gone.
    """
    try:
        version = run_quietly([PYTHON, "--version"]).stdout
    except OSError:
        version = ""
    sources = [path.read_bytes() for path in (ROOT / "pyproject.toml", *sorted((ROOT / "shmpool").glob("*.[ch]")))]
    return hashlib.sha256(b"\0".join((os.fsencode(ROOT), version.encode(), *sources))).hexdigest()


def installed(stamp: Path) -> str | None:
    try:
        return stamp.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None


@contextlib.contextmanager
def only_one_at_a_time() -> Iterator[None]:
    """Hold the lock on the project's root directory; the kernel releases it if we are killed."""
    descriptor = os.open(ROOT, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def make_environment() -> None:
    """Make `.venv` without pip, which always works; find_pip sees to pip. Whatever was there did not run, and goes."""
    say(f"Making .venv with Python {sys.version.split()[0]} ({sys.executable}).")
    result = run_quietly([sys.executable, "-m", "venv", "--clear", "--without-pip", VENV])
    if result.returncode:
        sys.exit(f"{result.stdout}Python's venv module could not make {VENV}; its message is above.")


def install() -> None:
    say("Installing what pyproject.toml asks for into .venv (once; about a minute).")
    if not pip_installs(REQUIREMENT):
        sys.exit(
            f"pip could not install {REQUIREMENT} (its message is above), so nothing was run. It needs PyPI, or a"
            " mirror named by PIP_INDEX_URL. Run the same command again to go on from here."
        )


def install_rivals() -> bool:
    """Install what there is to install and the rivals; say so if that cannot be done. The benchmarks tell which are missing."""
    say("Installing what pyproject.toml asks for, and what the benchmarks compare with, into .venv (once; about a minute).")
    if pip_installs(WITH_RIVALS):
        return True
    say("The rivals could not be installed (pip's message is above; UltraDict needs a C compiler). Going on without them.")
    return False


def pip_installs(requirement: str) -> bool:
    options = ["--quiet", "--quiet", "--no-input", "--disable-pip-version-check"]
    return run_to_the_end([*find_pip(), "install", *options, "--editable", requirement]) == 0


def find_pip() -> list[str | Path]:
    """Return the command of a pip that installs into `.venv`.

    Debian's python3 without python3-venv has no ensurepip. There the system's pip fills `.venv` from outside; that
    is not an externally managed environment, whatever the system's own is.
    """
    inside: list[str | Path] = [PYTHON, "-m", "pip"]
    outside: list[str | Path] = [sys.executable, "-m", "pip", "--python", PYTHON]
    if works([*inside, "--version"]) or works([PYTHON, "-m", "ensurepip"]):
        return inside
    if works([*outside, "--version"]):
        return outside
    sys.exit(
        f"{sys.executable} has neither ensurepip nor a pip of 22.3 or newer, so .venv stays empty."
        " Install one (Debian, Ubuntu: apt install python3-venv) and run the same command again."
    )


def works(command: list[str | Path]) -> bool:
    try:
        return run_quietly(command).returncode == 0
    except OSError:  # not there, or not a program
        return False


def run_quietly(command: list[str | Path]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )


def say(line: str) -> None:
    """To stderr, so that `demo --json` keeps stdout to itself."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
