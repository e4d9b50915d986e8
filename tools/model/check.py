"""Have Spin check lock.pml, the protocol of a stripe's lock, in every reachable state, and reject its broken variants.

    python tools/model/check.py [--quick] [--json] [--save] [--show VARIANT]

Needs Debian's `spin` and a C compiler. Exit status 0 if the protocol as it is coded passes and every broken variant is
rejected, 1 if not, 2 if the tools are missing.
"""

import argparse
import datetime
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Final

from rich.console import Console
from rich.progress import track
from rich.table import Table

from tools.bench_intern import machine

MODEL: Final = Path(__file__).with_name("lock.pml")
RESULTS: Final = Path(__file__).parents[1] / "results"
NEEDED: Final = ("spin", "gcc")
DEADLINE_S: Final = 1200.0  # against a checker that hangs; the longest of these takes a minute or two
PLAIN_WIDTH: Final = 150  # of the table in a file or a pipe


@dataclass(frozen=True)
class Case:
    """One run of the checker: a variant of the model, and whether it is to pass.

    Without `rounds` nothing is bounded, and what may never happen is looked for breadth first; with them, an execution in which
    somebody waits for ever though every process that can take a step takes it some time (weak fairness).
    """

    variant: str  # "" is the protocol as it is coded
    is_sound: bool
    why: str
    rounds: int = 0
    strikes: int = 0  # with rounds; without, they never end
    is_quick: bool = True

    @property
    def bounds(self) -> str:
        if not self.rounds:
            return "none"
        return f"rounds {self.rounds}, deaths 2, strikes {self.strikes}"

    @property
    def must_violate(self) -> str:
        """How what the checker says of an unsound variant begins; "" for a sound one."""
        if self.is_sound:
            return ""
        return "acceptance cycle" if self.rounds else "assertion violated"

    @property
    def defines(self) -> list[str]:
        bounds = [f"-DROUNDS={self.rounds}", f"-DSTRIKES={self.strikes}"] if self.rounds else []
        return [*bounds, *([f"-D{self.variant}"] if self.variant else [])]


SAFE: Final = "exclusion, recovery first, few tokens"
ENDS: Final = "everyone gets in and out again"
CASES: Final = (
    Case("", is_sound=True, why=SAFE),
    Case("", is_sound=True, why=ENDS, rounds=1),
    Case("", is_sound=True, why=ENDS, rounds=2, is_quick=False),
    Case("", is_sound=True, why=ENDS, rounds=1, strikes=1, is_quick=False),
    Case("POST_FIRST", is_sound=True, why="the order of unlock and post is no matter", is_quick=False),
    Case("POST_ALWAYS", is_sound=True, why="surplus tokens stay few even undrained", is_quick=False),
    Case("STEAL", is_sound=False, why="a time-out takes the lock of a live holder"),
    Case("TRUST_TOKEN", is_sound=False, why="a token alone admits"),
    Case("OWNER_STEAL", is_sound=False, why="owner word: an unwritten one is taken for a dead one"),
    Case("OWNER_WORD", is_sound=False, why="owner word: killed between the token and the word", rounds=1),
    Case("NO_TAKEOVER", is_sound=False, why="nobody looks for a dead holder", rounds=1),
    Case("PINNED", is_sound=False, why="a child's mapping keeps the dead one's lock", rounds=1),
    Case("NO_RECOVERY", is_sound=False, why="who takes over does not recover"),
    Case("CLEAR_FIRST", is_sound=False, why="recovery clears the intent before it mends", is_quick=False),
)


@dataclass(frozen=True)
class Outcome:
    """What the checker said: the first property that it found violated, or what makes it worth nothing; both are "" if it visited
    every state and found none."""

    variant: str
    why: str
    bounds: str
    states: int
    depth: int
    seconds: float
    violated: str
    inconclusive: str
    is_as_expected: bool

    @property
    def verdict(self) -> str:
        if self.inconclusive:
            return f"inconclusive: {self.inconclusive}"
        return f"rejected: {self.violated}" if self.violated else "accepted"


def missing_tools() -> list[str]:
    return [tool for tool in NEEDED if shutil.which(tool) is None]


def check(case: Case) -> Outcome:
    """Generate, compile and run the checker, in a folder of its own that is removed again."""
    with tempfile.TemporaryDirectory(prefix="shmpool-model-") as folder:
        start = perf_counter()
        said = verify(case, Path(folder))
        seconds = perf_counter() - start
    has_error = int(found(r"errors: (\d+)", said)) > 0
    violated = found(r"^pan:\d+: (.*?) \(at depth", said) if has_error else ""
    inconclusive = "" if has_error else incompleteness(case, said)
    return Outcome(
        variant=case.variant or "as coded",
        why=case.why,
        bounds=case.bounds,
        states=int(found(r"(\d+) states, stored", said)),
        depth=int(found(r"depth reached (\d+)", said)),
        seconds=round(seconds, 2),
        violated=violated,
        inconclusive=inconclusive,
        is_as_expected=not inconclusive and violated.startswith(case.must_violate) and bool(violated) == bool(case.must_violate),
    )


def verify(case: Case, folder: Path) -> str:
    """What pan printed."""
    options = ["-DNFAIR=3"] if case.rounds else ["-DSAFETY", "-DBFS"]
    shutil.copy(MODEL, folder)  # a counterexample is written beside it
    run(["spin", "-a", *case.defines, MODEL.name], folder)
    run(["gcc", "-O2" if case.is_sound else "-O0", "-w", *options, "-o", "pan", "pan.c"], folder)
    return run(["./pan", *(["-a", "-f", "-m100000"] if case.rounds else [])], folder)


def incompleteness(case: Case, said: str) -> str:
    """What makes a run without errors worth less than it seems; "" if nothing does."""
    if "max search depth too small" in said or "out of memory" in said:
        return "the search was cut short"
    unreached = re.findall(r'lock\.pml:\d+, state \d+, "(.*)"', said)
    # For ever means that nobody comes to its end.
    idle = [line for line in unreached if line != "-end-" and not (case.rounds == 0 and line.startswith("gone["))]
    if idle and not case.variant and (case.strikes or not case.rounds):
        return f"never reached: {', '.join(idle)}"
    return ""


def found(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    if match is None:
        raise ModelError(f"Spin's checker printed nothing like {pattern!r}, but:\n{text}")
    return match[1]


class ModelError(Exception):
    """Spin, the compiler or the checker did not do its part."""


def run(command: Sequence[str], folder: Path) -> str:
    ended = subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=DEADLINE_S, check=False
    )
    if ended.returncode:
        raise ModelError(f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stdout}")
    return ended.stdout


def counterexample(case: Case) -> str:
    """Every step of the run in which a variant goes wrong."""
    with tempfile.TemporaryDirectory(prefix="shmpool-model-") as folder:
        verify(case, Path(folder))
        if not (Path(folder) / f"{MODEL.name}.trail").exists():
            return "There is none: it is sound.\n"
        return run(["spin", "-t", "-p", "-g", *case.defines, MODEL.name], Path(folder))


def tabulate(outcomes: Iterable[Outcome]) -> Table:
    table = Table(title="The lock of a stripe: 3 processes, in every reachable state", title_justify="left")
    for heading in ("variant", "what is shown, or what is broken", "bounds", "states", "depth", "s", "verdict"):
        table.add_column(heading, justify="right" if heading in ("states", "depth", "s") else "left")
    for each in outcomes:
        figures = (f"{each.states:,}", f"{each.depth:,}", f"{each.seconds:.1f}")
        verdict = f"[green]{each.verdict}[/]" if each.is_as_expected else f"[red bold]WRONGLY {each.verdict}[/]"
        table.add_row(each.variant, each.why, each.bounds, *figures, verdict)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="only what the tests run: half a minute")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--save", action="store_true", help="keep it in tools/results/model.json too")
    parser.add_argument("--show", choices=[case.variant for case in CASES if not case.is_sound], help="print how it goes wrong")
    options = parser.parse_args()
    missing = missing_tools()
    if missing:
        print(f"model: {' and '.join(missing)} not found (Debian, Ubuntu: apt install {' '.join(missing)})", file=sys.stderr)
        return 2
    try:
        if options.show:
            print(counterexample(next(case for case in CASES if case.variant == options.show)), end="")
            return 0
        cases = [case for case in CASES if case.is_quick or not options.quick]
        outcomes = [check(case) for case in track(cases, "Checking", console=Console(stderr=True))]
    except ModelError as error:
        print(f"model: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    report(outcomes, save=options.save, as_json=options.json)
    return 0 if all(outcome.is_as_expected for outcome in outcomes) else 1


def report(outcomes: list[Outcome], *, save: bool, as_json: bool) -> None:
    record = {
        "command": " ".join(["python", "tools/model/check.py", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "spin": subprocess.run(["spin", "-V"], capture_output=True, text=True, check=True).stdout.strip(),
        **machine(),
        "figures": [asdict(outcome) for outcome in outcomes],
    }
    if save:
        (RESULTS / "model.json").write_text(json.dumps(record, indent=2) + "\n")
    if as_json:
        print(json.dumps(record, indent=2))
    else:
        Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH).print(tabulate(outcomes))


if __name__ == "__main__":
    sys.exit(main())
