"""The commands that change something: they attach, or remove what nobody uses."""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Final, TextIO

import click

from shmpool import exchange, report
from shmpool.cli import USAGE, complain
from shmpool.leftovers import Leftover, gc
from shmpool.options import as_json, pool_name, print_json
from shmpool.pool import Pool
from shmpool.text import printable, show_size

_LOAD_BATCH: Final = 1000


@click.command()
@pool_name
@click.argument("file", type=click.File(encoding="utf-8"), default="-")
def load(name: str, *, file: TextIO) -> int:
    """Intern the topics of a dump, from FILE or standard input. This attaches to the pool.

    Of each line only "text" or "base64" is used: refs are the pool's own, and new. Where a line is none, or the pool is full,
    what was before it stays. Under `lru` and `ttl` nobody holds what is loaded; under `refcount` it would go at once, so that is
    refused.

    \b
    shmpool load gossip topics.jsonl
    shmpool dump old | shmpool load new
    """
    if report.summarize(name).state == "abandoned":
        return complain(f"pool {name!r}: nobody is attached, and it is not persistent: it would go with us. Nothing was changed.")
    with Pool.attach(name, cache_size=1) as pool:
        if pool.policy.counts_holds and not pool.policy.keeps_unheld:
            why = f"under {pool.policy} what nobody holds goes, and this command holds nothing once it ends"
            return complain(f"pool {name!r}: {why}. Nothing was changed.")
        before, count = len(pool), 0
        for batch, error in _batches(file):
            pool.intern_many(batch)
            count += len(batch)
            if error:
                raise click.ClickException(error)
        click.echo(f"{count:,} topics, of which {len(pool) - before:,} are new")
    return 0


def _batches(lines: Iterable[str]) -> Iterator[tuple[list[bytes], str]]:
    """Values, some at a time, and what is wrong with the line after them, which then was the last."""
    batch: list[bytes] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                batch.append(exchange.line_to_value(line))
            except ValueError as error:
                yield batch, f"line {number} is no topic: {error}"
                return
        if len(batch) == _LOAD_BATCH:
            yield batch, ""
            batch = []
    yield batch, ""


@click.command()
@pool_name
def rm(name: str) -> int:
    """Remove a pool that nobody is attached to, and its semaphores.

    \b
    shmpool rm gossip
    """
    if report.summarize(name).gate_locked:
        return complain(f"pool {name!r}: some process is attaching or leaving, or was stopped doing so. Nothing was removed.")
    Pool.unlink(name)
    click.echo(f"{name} was removed")
    return 0


@click.command("gc")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Only tell what would be removed.")
@as_json
def collect(*, yes: bool, dry_run: bool, as_json: bool) -> int:
    """Remove your pools whose last process was killed (but persistent ones), and semaphores without a pool. Asks first.

    \b
    shmpool gc --dry-run
    shmpool gc --yes
    """
    if not yes and not dry_run:
        if as_json or not sys.stdin.isatty():
            return complain("nobody is there to be asked: say --yes or --dry-run. Nothing was removed.", USAGE)
        found = gc(dry_run=True)
        _tell(found)
        if all(each.kept for each in found):
            return 0
        click.confirm("Remove these?", abort=True, err=True)
    found = gc(dry_run=dry_run)
    if as_json:
        print_json([asdict(each) for each in found])
    else:
        _tell(found)
    return 0


def _tell(found: list[Leftover]) -> None:
    if not found:
        click.echo("nothing to remove")
    for each in found:
        what = "kept" if each.kept else "removed" if each.removed else "would remove"
        click.echo(f"{what} {each.kind} {printable(each.path)} ({show_size(each.memory_size)}): {printable(each.note)}")
