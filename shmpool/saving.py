"""Files that are written whole or not at all."""

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path


def save(path: Path, data: bytes) -> None:
    """Put `data` under `path`: it is there when this returns, and whoever opens `path` meanwhile finds what was there before.

    Raises OSError, with what was there left as it was, and nothing else left behind: also for what is no file, such as a device.
    """
    path = Path(os.path.realpath(path))  # of a link, what it leads to is replaced
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError("it is there and is no file")
    if not path.parent.is_dir():
        raise OSError(f"there is no folder {path.parent}")
    beside = path.with_name(f".{secrets.token_hex(8)}.tmp")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)  # as the umask has it
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        beside.rename(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
