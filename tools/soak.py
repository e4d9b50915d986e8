"""Soak one pool, and pools that come and go, with processes that come, go and are killed; watch that nothing grows.

    python tools/soak.py [--minutes M] [--seed N] [--json] [--save]

One long-lived process keeps a pool attached. In each act it attaches and detaches pools itself and starts a few children that
intern, look up and resolve, each in a role: some detach in order, some just end, some are killed with SIGKILL at a random
instant, some use what they inherited by fork, some are independent interpreters, and some create pools and leave them. Between
acts, when all of them are gone, it counts what is left.

Exit status 0 if every figure is flat, by the rule of tools/flatness.py, and nothing went wrong, 1 if not. It runs in a
/dev/shm of its own where the system lets it (root), so that nobody else's pools are counted.
"""

import argparse
import datetime
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from shmpool import Pool, PoolBusyError, PoolNotFoundError
from tools.bench_intern import machine, topics
from tools.flatness import ALLOWED, Verdict, judge, tabulate

SHM: Final = Path("/dev/shm")
RESULTS: Final = Path(__file__).parent / "results"
NAMES: Final = topics(4096)
PLACES: Final = 3  # names under which pools come and go
CHILDREN: Final = 3
ATTACHED_AT_ONCE: Final = 2 + 2 * CHILDREN + 1  # this process twice, children that inherited and attach, an interpreter
SAMPLES: Final = 120
PRIVATE: Final = "SHMPOOL_SOAK_PRIVATE"  # in the environment: /dev/shm is its own
PLAIN_WIDTH: Final = 100

STRANGER: Final = """
import sys
from shmpool import Pool
pool = Pool.attach(sys.argv[1])
for value in sys.argv[2:]:
    assert pool.resolve(pool.intern(value.encode())) == value.encode()
"""


@dataclass
class Soak:
    """The long-lived process. `samples` has the seconds since the start and a figure of each kind, taken between acts."""

    name: str
    rng: random.Random
    pool: Pool
    other_files: frozenset[str]
    refs: dict[bytes, int] = field(default_factory=dict)
    samples: list[dict[str, float]] = field(default_factory=list)
    acts: int = 0
    started: int = 0
    killed: int = 0
    wrong: list[str] = field(default_factory=list)

    def warm_up(self) -> None:
        """Attach as often at once as ever will be, and use every name, so that every ledger that will be has its memory."""
        with ExitStack() as stack:
            for _ in range(ATTACHED_AT_ONCE):
                stack.enter_context(Pool.attach(self.name)).lookup_many(NAMES)

    def act(self) -> None:
        """Children come while this process comes and goes itself; when it ends they are gone, and so are their pools."""
        roles = (self.visit, self.visit_for_ever, self.inherit, self.found, self.found_for_ever)
        children = [self.start(self.rng.choice(roles)) for _ in range(CHILDREN)]
        stranger = self.start_stranger() if self.acts % 20 == 0 else None
        try:
            self.come_and_go()
            time.sleep(self.rng.uniform(0, 0.03))
        finally:
            for child, is_victim in children:
                self.end(child, is_victim=is_victim)
            if stranger is not None and stranger.wait():
                self.wrong.append(f"an independent interpreter ended with {stranger.returncode}")
        self.sweep()
        self.acts += 1

    # ---- children

    def start(self, role: Callable[[random.Random], None]) -> tuple[int, bool]:
        """Fork a child in a role; returns its pid, and whether it stays until it is killed."""
        seed = self.rng.getrandbits(32)
        self.started += 1
        pid = os.fork()
        if pid == 0:
            self.play(role, random.Random(seed))
        return pid, role in (self.visit_for_ever, self.found_for_ever)

    def play(self, role: Callable[[random.Random], None], rng: random.Random) -> NoReturn:
        status = 1
        try:
            role(rng)
            status = 0
        except BaseException:  # noqa: BLE001 - its status tells
            traceback.print_exc()
        os._exit(status)

    def start_stranger(self) -> subprocess.Popen[bytes]:
        self.started += 1
        values = [value.decode() for value in self.rng.sample(NAMES, 20)]
        return subprocess.Popen([sys.executable, "-c", STRANGER, self.name, *values])

    def end(self, pid: int, *, is_victim: bool) -> None:
        if is_victim:
            os.kill(pid, signal.SIGKILL)
            self.killed += 1
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status != (-signal.SIGKILL if is_victim else 0):
            self.wrong.append(f"child {pid} ended with {status}")

    def visit(self, rng: random.Random) -> None:
        self.visit_once(rng)
        if rng.random() < 0.5:
            self.pool.close()  # the row that the fork gave it; else it is left as a killed process leaves it

    def visit_for_ever(self, rng: random.Random) -> None:
        while True:
            self.visit_once(rng)

    def visit_once(self, rng: random.Random) -> None:
        with Pool.attach(self.name) as pool:
            self.use(pool, rng)

    def inherit(self, rng: random.Random) -> None:
        self.use(self.pool, rng)
        if rng.random() < 0.5:
            self.pool.close()

    def found(self, rng: random.Random) -> None:
        """Open, or create, a pool in one of a few places where others do so at this time."""
        with Pool.open(self.place(rng.randrange(PLACES)), stripe_count=2, process_count=32) as pool:
            values = rng.sample(NAMES, 50)
            assert pool.resolve_many(pool.intern_many(values)) == values

    def found_for_ever(self, rng: random.Random) -> None:
        while True:
            self.found(rng)

    def use(self, pool: Pool, rng: random.Random) -> None:
        values = rng.sample(NAMES, 100)
        refs = pool.intern_many(values).tolist()
        assert refs == [self.refs[value] for value in values]
        for value in rng.sample(NAMES, 100):
            assert pool.intern(value) == pool.lookup(value) == self.refs[value]
            assert pool.resolve(pool.intern(value)) == value
        assert pool.lookup(b"/never/interned") is None

    # ---- this process

    def place(self, number: int) -> str:
        return f"{self.name}-{number}"

    def come_and_go(self) -> None:
        self.use(self.pool, self.rng)
        self.visit_once(self.rng)
        self.found(self.rng)
        self.pool.flush()

    def sweep(self) -> None:
        """Attach the pools whose users were killed; they are sound, and go with this last one of them."""
        for number in range(PLACES):
            try:
                with Pool.attach(self.place(number)) as pool:
                    self.wrong += map(str, pool.check())
            except PoolNotFoundError:
                continue

    def sample(self, elapsed_s: float) -> None:
        files = [name for name in os.listdir(SHM) if name not in self.other_files]
        stats, shm = self.pool.stats(), os.statvfs(SHM)
        resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.samples.append(
            {
                "elapsed_s": round(elapsed_s, 2),
                "descriptors": len(os.listdir("/proc/self/fd")),
                "mappings": Path("/proc/self/maps").read_bytes().count(b"\n"),
                "segment_files": sum(name.startswith("shmpool.") for name in files),
                "semaphores": sum(name.startswith("sem.shmpool-") for name in files),
                "rows": len(stats.processes),
                "resident_kib": resident_pages * os.sysconf("SC_PAGE_SIZE") / 1024,
                "segment_kib": stats.memory_size / 1024,
                "shm_kib": (shm.f_blocks - shm.f_bfree) * shm.f_frsize / 1024,
            }
        )

    def finish(self) -> None:
        """What must be true in the end."""
        self.wrong += map(str, self.pool.check())
        if {value: ref for ref, value in self.pool} != self.refs:
            self.wrong.append("the names and refs of the pool are not those it began with")


def soak(duration_s: float, seed: int, progress: Progress) -> Soak:
    """Run acts for that long, or until Ctrl-C, and sample in between."""
    name = f"soak-{os.getpid()}"
    others = frozenset(os.listdir(SHM))
    task = progress.add_task("Soaking", total=duration_s)
    with Pool.create(name, stripe_count=4) as pool:
        run = Soak(name, random.Random(seed), pool, others)
        run.refs = dict(zip(NAMES, pool.intern_many(NAMES).tolist(), strict=True))
        run.warm_up()
        start = time.monotonic()
        try:
            while (elapsed := time.monotonic() - start) < duration_s:
                run.act()
                if elapsed >= len(run.samples) * duration_s / SAMPLES:
                    run.sample(elapsed)
                progress.update(task, completed=elapsed)
        except KeyboardInterrupt:
            run.wrong.append("interrupted")
        run.finish()
        for number in range(PLACES):
            with suppress(PoolNotFoundError, PoolBusyError):
                Pool.unlink(run.place(number))
    return run


def become_private() -> None:
    """Run again in a mount namespace with a /dev/shm of its own, if that can be had."""
    script = 'mount -t tmpfs -o size=256m tmpfs /dev/shm && exec "$0" "$@"'
    wrapped = ["unshare", "-m", "sh", "-c", script]
    try:
        may = subprocess.run([*wrapped, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        may = False
    if may:
        os.execvpe("unshare", [*wrapped, sys.executable, *sys.argv], os.environ | {PRIVATE: "1"})
    print("soak: no /dev/shm of its own (needs root): other pools on this host may disturb the figures", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=secrets.randbits(32), help="of everything random; default: a new one")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--save", action="store_true", help="keep it in tools/results/soak.json too, and draw it")
    options = parser.parse_args()
    if PRIVATE not in os.environ:
        become_private()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        run = soak(options.minutes * 60, options.seed, progress)
    if len(run.samples) < 8:
        print(f"soak: {len(run.samples)} samples are too few to judge", file=sys.stderr)
        return 1
    # Without a /dev/shm of its own, what all files there take says nothing about these pools.
    verdicts = judge(run.samples, [each for each in ALLOWED if each != "shm_kib" or PRIVATE in os.environ])
    passed = all(verdict.is_flat for verdict in verdicts) and not run.wrong
    record = json.dumps(describe(run, verdicts, options.seed, passed=passed), indent=2)
    if options.save:
        (RESULTS / "soak.json").write_text(record + "\n")
        subprocess.run([sys.executable, Path(__file__).with_name("plot_soak.py")], check=True)
    if options.json:
        print(record)
    else:
        title = f"{options.minutes:g} minutes: {run.acts:,} acts, {run.started:,} processes, {run.killed:,} of them killed"
        Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH).print(tabulate(verdicts, title))
        print(*run.wrong[:10], sep="\n")
    return 0 if passed else 1


def describe(run: Soak, verdicts: list[Verdict], seed: int, *, passed: bool) -> dict[str, object]:
    return {
        "command": " ".join(["python", "tools/soak.py", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seed": seed,
        **machine(),
        "passed": passed,
        "acts": run.acts,
        "processes": run.started,
        "killed": run.killed,
        "wrong": run.wrong,
        "figures": {
            each.figure: {"second_quarter": each.second_quarter, "last_quarter": each.last_quarter, "allowed": each.allowed}
            for each in verdicts
        },
        "samples": {figure: [sample[figure] for sample in run.samples] for figure in run.samples[0]},
    }


if __name__ == "__main__":
    sys.exit(main())
