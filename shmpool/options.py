"""What the commands of `shmpool` have in common."""

from typing import Any

import click

from shmpool import segment as segments
from shmpool.text import to_json


def _check_name(_: click.Context, __: click.Parameter, name: str) -> str:
    try:
        segments.validate_name(name)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return name


def _complete_name(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in segments.own_names() if name.startswith(incomplete)]


pool_name = click.argument("name", callback=_check_name, shell_complete=_complete_name)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON; its keys are stable.")


def print_json(data: Any) -> None:
    click.echo(to_json(data, indent=2))
