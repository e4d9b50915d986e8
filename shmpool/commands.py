"""The `shmpool` command: its group, and how its errors of usage are told."""

import click

from shmpool.changing import collect, load, rm
from shmpool.cli import USAGE, complain, hush
from shmpool.looking import check, dump, inspect, lookup, ls, metrics, resolve, top


def run(arguments: list[str]) -> int:
    """Run the command line; returns the exit code. Raises PoolError, OSError, KeyboardInterrupt."""
    try:
        return root.main(arguments, prog_name="shmpool", standalone_mode=False) or 0
    except click.Abort:  # at a question, or Ctrl-C
        raise KeyboardInterrupt from None
    except click.ClickException as error:
        usage = f"{error.ctx.get_usage()}\n" if isinstance(error, click.UsageError) and error.ctx else ""
        click.echo(usage, err=True, nl=False)
        return complain(error.format_message(), USAGE)


class _Root(click.Group):
    def invoke(self, ctx: click.Context) -> int:
        try:
            return super().invoke(ctx) or 0
        except BrokenPipeError:  # which click would make an exit code of 1
            return hush()


@click.group(cls=_Root, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="shmpool")
def root() -> None:
    """See what the pools on this host hold, who holds them, whether they are sound, and what to do.

    \b
    shmpool ls                         all pools
    shmpool inspect gossip             all about one
    shmpool inspect gossip --watch     the same, live
    shmpool top                        all pools, live
    shmpool check gossip               is it sound?
    shmpool dump gossip > topics.jsonl
    shmpool gc --dry-run               what do killed processes leave behind?

    Only load, rm and gc change anything. All others read a copy: they take no lock, no row and no memory of the pool, count no
    hits, and work on a pool whose every process is dead or stopped.

    Exit codes: 0 done; 1 the answer is no (a finding, something not there or not readable); 2 wrong usage; 3 no such pool, or it
    cannot be used for this; 130 interrupted.

    Completion in bash: eval "$(_SHMPOOL_COMPLETE=bash_source shmpool)"; zsh_source and fish_source likewise.
    """


for command in (ls, inspect, check, resolve, lookup, dump, load, rm, collect, metrics, top):
    root.add_command(command)
