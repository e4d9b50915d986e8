"""A /dev/shm of one's own, as small as a test wants it: a real tmpfs, mounted in a mount namespace that ends with the process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache

import pytest

from tests.unit.processes import DEADLINE_S, ROOT


def in_small_shm(*arguments: str, mount: str = "size=16m") -> subprocess.CompletedProcess[str]:
    """Run Python with `arguments` where /dev/shm is a tmpfs of its own with the options `mount`."""
    script = f'mount -t tmpfs -o {mount} tmpfs /dev/shm && exec "$0" "$@"'
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", script, sys.executable, "-W", "error", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False, timeout=3 * DEADLINE_S,
    )


@cache
def can_mount() -> bool:
    return os.geteuid() == 0 and shutil.which("unshare") is not None and in_small_shm("-c", "").returncode == 0


def skip_unless_it_can_be_had() -> None:
    if not can_mount():
        pytest.skip("needs root, unshare and the right to mount, for a small /dev/shm of its own")
