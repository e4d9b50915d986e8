"""Claims about files that the command writes: each is whole or not there, and what cannot be written is said and left alone."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from shmpool import Pool
from shmpool.saving import save
from tests.unit.command import Run, run_inside, run_outside
from tests.unit.looks import sample_pool
from tests.unit.processes import in_child


@pytest.fixture
def pool(pool_name: str) -> Iterator[Pool]:
    with sample_pool(pool_name) as made:
        yield made


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return lambda *arguments: run_inside(capsys, *arguments)


def test_a_file_is_written_whole_and_what_was_opened_before_stays_what_it_was(pool: Pool, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text("before")
    with file.open() as opened:
        ran = run_outside("inspect", pool.name, "--html", str(file))

        assert opened.read() == "before"
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"{file} was written (")
    assert file.read_text().startswith("<!DOCTYPE html>")
    assert file.read_text().endswith("</html>\n")
    assert os.listdir(tmp_path) == ["page.html"]


def test_a_new_file_is_as_the_umask_has_it_and_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")

    def write() -> int:
        os.umask(0o027)
        save(tmp_path / "link", b"data")
        return stat.S_IMODE((tmp_path / "file").stat().st_mode)

    assert in_child(write) == 0o640
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"data"


PLACES: dict[str, Callable[[Path], Path]] = {
    "a folder": lambda folder: folder,
    "no such folder": lambda folder: folder / "none" / "page.html",
    "below a file": lambda folder: folder / "file" / "page.html",
    "a pipe": lambda folder: folder / "pipe",
    "a device": lambda folder: folder / "device",  # not /dev/null: this must be able to fail
    "a link to itself": lambda folder: folder / "loop",
    "too long a name": lambda folder: folder / ("x" * 300),
    "no file system for files": lambda _: Path("/proc/self/page.html"),
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_what_cannot_be_written_is_a_clear_error_and_left_as_it_is(
    pool: Pool, run: Run, tmp_path: Path, place: Callable[[Path], Path]
) -> None:
    (tmp_path / "file").write_text("before")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    with suppress(PermissionError):  # who may not make devices has none to lose
        os.mknod(tmp_path / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    before = {entry.name: entry.lstat() for entry in tmp_path.iterdir()}
    path = place(tmp_path)
    if path.name == "device" and not path.exists():
        pytest.skip("this container lets nobody make devices")

    ran = run("inspect", pool.name, "--html", str(path))

    assert (ran.code, ran.out) == (2, "")
    assert f"{path} cannot be written: " in ran.err
    assert "Traceback" not in ran.err
    assert {entry.name: entry.lstat() for entry in tmp_path.iterdir()} == before


def test_a_write_that_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"before")

    def write_too_much() -> str:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            save(tmp_path / "file", bytes(100_000))
        except OSError as error:
            return os.strerror(error.errno or 0)
        return ""

    assert in_child(write_too_much) == "File too large"
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"before"


@pytest.mark.parametrize("option", ["--json", "--watch"])
def test_a_page_goes_with_no_other_form_of_output(pool: Pool, run: Run, tmp_path: Path, option: str) -> None:
    ran = run("inspect", pool.name, "--html", str(tmp_path / "page.html"), option)

    assert (ran.code, ran.out) == (2, "")
    assert "--html goes with" in ran.err
    assert not list(tmp_path.iterdir())


def test_without_a_pool_there_is_no_page(run: Run, pool_name: str, tmp_path: Path) -> None:
    ran = run("inspect", pool_name, "--html", str(tmp_path / "page.html"))

    assert (ran.code, ran.out) == (3, "")
    assert not list(tmp_path.iterdir())
