"""The `shmpool` command: says so plainly where what it needs is not installed, and turns errors into sentences and exit codes.

0: done. 1: the answer is no (check found something, a topic or ref is not there, part of a pool could not be read). 2: wrong
usage. 3: the pool is not there, or cannot be used for this. 130: interrupted.
"""

import os
import sys
from importlib import import_module
from typing import Final

from shmpool.errors import PoolError
from shmpool.text import printable

FOUND: Final = 1
USAGE: Final = 2
REFUSED: Final = 3
_INTERRUPTED: Final = 130
_EXTRA: Final = ("click", "rich", "prometheus_client")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a locale that lacks a topic's letters
    try:
        commands = import_module("shmpool.commands")
        code = int(commands.run(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return code
    except ImportError as error:
        library = (error.name or "").partition(".")[0]
        if library not in _EXTRA:
            raise
        return complain(f"the command needs {library}, which is not installed: pip install 'shmpool[cli]'")
    except (PoolError, OSError) as error:
        return hush() if isinstance(error, BrokenPipeError) else complain(str(error))
    except KeyboardInterrupt:
        return _INTERRUPTED


def hush() -> int:
    """Whoever read our output has seen enough: the rest goes nowhere. Returns the exit code."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    return 0


def complain(sentence: str, code: int = REFUSED) -> int:
    """Say what is wrong on standard error; returns the exit code."""
    print(f"shmpool: {printable(sentence)}", file=sys.stderr)  # noqa: T201 - its output
    return code


if __name__ == "__main__":
    sys.exit(main())
