"""The commands that look: on a view, so that they change nothing and wait for nobody."""

import base64
import binascii
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

import click
from rich.console import Console, RenderableType
from rich.live import Live

from shmpool import exchange, reading, report
from shmpool import segment as segments
from shmpool.cli import FOUND, USAGE, complain
from shmpool.errors import PoolNotFoundError
from shmpool.live import run_top
from shmpool.options import as_json, pool_name, print_json
from shmpool.page import draw_page
from shmpool.render import Renderer, make_console, show
from shmpool.report import Report
from shmpool.saving import save
from shmpool.text import printable, show_size, to_json


@click.command()
@as_json
def ls(*, as_json: bool) -> int:
    """List all pools on this host, everybody's.

    STATE is "in use", "idle" (persistent, nobody attached), "abandoned" (its last process was killed), "damaged", "other
    version", "no pool" or "unreadable" (another user's, or no file at all).

    \b
    shmpool ls
    shmpool ls --json | jq -r '.[] | select(.state == "abandoned") | .name'
    """
    reports = list(_all_pools())
    if as_json:
        print_json([exchange.summary_to_data(each) for each in reports])
    elif reports:
        console = make_console()
        show(console, Renderer(console).pools(reports))
    return 0


def _all_pools() -> Iterator[Report]:
    for name, uid in segments.all_names():
        with suppress(PoolNotFoundError):  # it went meanwhile
            yield report.summarize(name, uid)


@click.command()
@click.option("--every", default=2.0, show_default=True, type=click.FloatRange(0.1), metavar="S", help="Seconds between looks.")
def top(*, every: float) -> int:
    """Show all pools live, busiest first if you like: keys sort and filter, q quits. For a terminal.

    Rates are as of each process's last flush of its counters.

    \b
    shmpool top --every 0.5
    """
    if not sys.stdin.isatty() or not sys.stdout.isatty():
        return complain("top is for a terminal. See `shmpool ls --json` and `shmpool inspect --watch`.", USAGE)
    with suppress(KeyboardInterrupt):
        run_top(make_console(), lambda: list(_all_pools()), every)
    return 0


@click.command()
@pool_name
@as_json
@click.option("--topics", "glob", is_flag=False, flag_value="*", metavar="[GLOB]",
              help="List every topic, or those that match; * is any number of characters.")
@click.option("--top", type=click.IntRange(0), default=10, show_default=True, metavar="K", help="How many of the topics.")
@click.option("--watch", is_flag=False, flag_value="2", type=click.FloatRange(0.1), metavar="[S]",
              help="Show it again every S seconds (2), in place on a terminal, until Ctrl-C.")
@click.option("--html", "file", metavar="FILE",
              help="Write it as one page for a browser, which needs nothing else, to FILE; - is standard output.")
def inspect(name: str, *, as_json: bool, glob: str | None, top: int, watch: float | None, file: str | None) -> int:
    """Show all about a pool: header, fill, stripes, probe lengths, processes and the topics most used.

    Of a damaged pool, or one of another version, what can be read is shown, the rest is named in red, and the exit code is 1.

    \b
    shmpool inspect gossip
    shmpool inspect gossip --topics '*beacon_block*' --top 0
    shmpool inspect gossip --json | jq '.processes[] | select(.state == "stopped")'
    shmpool inspect gossip --watch 0.5
    shmpool inspect gossip --html gossip.html
    """
    if file is not None and (as_json or watch is not None):
        raise click.UsageError("--html goes with neither --json nor --watch")
    seen: list[Report] = []

    def look() -> Report:
        seen[:] = [report.inspect(name, top=top, with_topics=glob is not None)]
        if glob is not None:
            seen[0].topics = [topic for topic in seen[0].topics or [] if _matches(topic.value, glob)]
        return seen[0]

    def print_once(console: Console) -> None:
        if as_json:
            click.echo(to_json(exchange.report_to_data(look()), indent=None if watch else 2))
        else:
            show(console, Renderer(console).report(look()))

    if file is not None:
        _write_page(file, look())
    else:
        _repeat(watch, print_once, None if as_json else lambda renderer: renderer.report(look()))
    return FOUND if seen and seen[0].problems else 0


def _write_page(file: str, seen: Report) -> None:
    page = draw_page(seen).encode()
    if file == "-":
        click.echo(page, nl=False)
    else:
        try:
            save(Path(file), page)
        except OSError as error:
            reason = f"{file} cannot be written: {error.strerror or error}. What was there is as it was."
            raise click.BadParameter(reason, param_hint="--html") from None
        click.echo(f"{printable(file)} was written ({show_size(len(page))})")
    for problem in seen.problems:
        complain(problem)


def _matches(value: bytes, glob: str) -> bool:
    # Of bytes that are no UTF-8 each is one character, as os.fsencode would have them in an argument.
    return fnmatchcase(os.fsdecode(value), glob)


@click.command()
@pool_name
@as_json
def check(name: str, *, as_json: bool) -> int:
    """Check every invariant of a pool. Exits with 0 if it is sound and with 1 if not; never changes anything.

    What a killed process left half done is no finding: who needs that stripe next finishes it.

    \b
    shmpool check gossip && echo sound
    """
    findings = reading.check(name)
    if as_json:
        print_json([exchange.finding_to_data(finding) for finding in findings])
    elif not findings:
        click.echo(f"{name} is sound")
    else:
        for finding in findings:
            click.echo(printable(f"{finding.where}: {finding.what}. {finding.advice}"))
    return FOUND if findings else 0


@click.command()
@pool_name
@click.argument("refs", nargs=-1, required=True, type=click.INT, metavar="REF...")
@as_json
def resolve(name: str, refs: tuple[int, ...], *, as_json: bool) -> int:
    """Print the topic of each ref. Exits with 1 if one is no ref of this pool.

    \b
    shmpool resolve gossip 893353197568
    """
    values = reading.resolve(name, list(refs))
    if as_json:
        print_json([{"ref": ref} | (exchange.value_to_data(value) if value is not None else {"missing": True})
                     for ref, value in zip(refs, values, strict=True)])
    for ref, value in zip(refs, values, strict=True):
        if value is None:
            complain(f"pool {name!r}: {ref} is no ref of this pool")
        elif not as_json:
            click.echo(f"{ref}  {printable(value)}")
    return FOUND if None in values else 0


@click.command()
@pool_name
@click.argument("topics", nargs=-1, required=True, metavar="TOPIC...")
@click.option("--base64", "is_base64", is_flag=True, help="Topics are given in base64, for those that are no text.")
@as_json
def lookup(name: str, topics: tuple[str, ...], *, is_base64: bool, as_json: bool) -> int:
    """Print the ref of each topic. Never inserts. Exits with 1 if the pool does not hold one.

    \b
    shmpool lookup gossip /eth2/6a95a1a9/beacon_block/ssz_snappy
    shmpool lookup gossip --base64 AP8=
    """
    try:
        values = [base64.b64decode(topic, validate=True) if is_base64 else os.fsencode(topic) for topic in topics]
    except (binascii.Error, ValueError) as error:
        raise click.BadParameter(f"a topic is no base64: {error}") from None
    refs = reading.lookup(name, values)
    if as_json:
        print_json([exchange.value_to_data(value) | ({"ref": ref} if ref is not None else {"missing": True})
                     for ref, value in zip(refs, values, strict=True)])
    for ref, value in zip(refs, values, strict=True):
        if ref is None:
            complain(f"pool {name!r} does not hold {os.fsdecode(value)}")
        elif not as_json:
            click.echo(f"{ref}  {printable(value)}")
    return FOUND if None in refs else 0


@click.command()
@pool_name
@click.option("--listen", default="127.0.0.1:9464", show_default=True, metavar="HOST:PORT", help="Port 0 takes a free one.")
def metrics(name: str, *, listen: str) -> int:
    """Serve a pool's figures to Prometheus until Ctrl-C. The pool may come, go and come again meanwhile: see shmpool_up.

    \b
    shmpool metrics gossip --listen 127.0.0.1:9464 &
    curl http://127.0.0.1:9464/metrics
    """
    from shmpool.metrics import serve

    host, colon, port = listen.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise click.BadParameter(f"{listen!r} is no HOST:PORT", param_hint="--listen")
    serve(name, host.strip("[]"), int(port), click.echo)
    return 0


@click.command()
@pool_name
def dump(name: str) -> int:
    """Print every topic as a line of JSON: {"ref", "text", "uses"}, in order of refs.

    A topic that is no UTF-8 has "base64" instead of "text". Exits with 1 if some could not be read; the rest is printed.

    \b
    shmpool dump gossip > topics.jsonl
    shmpool dump gossip | jq -r .text
    """
    with reading.all_topics(name) as (topics, problems):
        for topic in topics:
            click.echo(to_json(exchange.topic_to_data(topic)))
    for problem in problems:
        complain(problem)
    return FOUND if problems else 0


def _repeat(
    seconds: float | None, print_once: Callable[[Console], None], draw: Callable[[Renderer], RenderableType] | None
) -> None:
    """Print once; or, every so many seconds until Ctrl-C, draw in place on a terminal and print again elsewhere."""
    console = make_console()
    if seconds is None:
        print_once(console)
        return
    with suppress(KeyboardInterrupt):
        if not draw or not console.is_terminal:
            while True:
                print_once(console)
                sys.stdout.flush()
                time.sleep(seconds)
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(draw(Renderer(console)), refresh=True)
                time.sleep(seconds)
