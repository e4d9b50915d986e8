"""How a pool comes to be, is joined, left and removed: everything that happens under the gate.

The gate is a byte lock on the segment's file. Who attaches looks the name up, takes the gate of what it found and looks
again; only a holder of the gate removes the name. So nobody joins a pool that is being removed, and no two live
pools have one name. The semaphores exist only while the name does: they are made after it and removed before it.
"""

import secrets
import time
from typing import Final, NamedTuple

from shmpool import segment as segments
from shmpool.attachment import Attachment, take_row
from shmpool.errors import PoolBusyError, PoolError
from shmpool.header import Constants
from shmpool.layout import (
    GATE_BYTE,
    MAX_ARENA_SIZE,
    MAX_EPOCH,
    MIN_ORIGIN,
    PROCESS_BYTES,
    Geometry,
)
from shmpool.lock import (
    ByteLock,
    Semaphores,
    close_semaphores,
    open_semaphores,
    others_hold,
    unlink_semaphores,
)
from shmpool.policy import Policy
from shmpool.segment import Segment

_RACE_TRIES: Final = 100


class Seat(NamedTuple):
    """What an attached process has: its segment, the gate, a locked row and the turnstiles."""

    segment: Segment
    gate: ByteLock
    row: int
    semaphores: Semaphores


def choose_constants(
    *,
    capacity: int,
    arena_size: int | None,
    stripe_count: int,
    max_value_size: int,
    insert_budget: int | None,
    reserve: int | None,
    process_count: int,
    persistent: bool,
    policy: Policy | None = None,
) -> Constants:
    """Fill in the defaults of a new pool's options. Raises ValueError for options that no pool can have."""
    # A provisional arena of the largest size checks the other options, and knows the size of a chunk.
    policy = policy or Policy.forever()
    reuses = policy.counts_holds
    chunk_size = Geometry(capacity, MAX_ARENA_SIZE, stripe_count, process_count, max_value_size, reuses).chunk_size
    if arena_size is None:
        # Room for `capacity` values of the largest size: at most a fifth of a chunk is too short for the next record; of the
        # larger spaces of a policy that uses them again, a quarter, and an eighth of each is padding.
        needed = capacity * (max_value_size + (32 if reuses else 24)) * (12 if reuses else 10) // 8
        arena_size = min((needed // chunk_size + 1 + stripe_count) * chunk_size, MAX_ARENA_SIZE)
    else:
        arena_size = -(-arena_size // chunk_size) * chunk_size
    geometry = Geometry(capacity, arena_size, stripe_count, process_count, max_value_size, reuses)
    insert_budget = 1 << 63 if insert_budget is None else insert_budget
    reserve = capacity // 16 if reserve is None else reserve
    if insert_budget < 0:
        raise ValueError(f"insert_budget must not be negative, as {insert_budget} is")
    if not 0 <= reserve <= capacity:
        raise ValueError(f"reserve must be 0 to capacity ({capacity}) topics, not {reserve}")
    return Constants(
        pool_id=secrets.randbits(64),
        hash_key=secrets.token_bytes(16),
        geometry=geometry,
        insert_budget=insert_budget,
        reserve=reserve,
        persistent=persistent,
        created_ns=time.time_ns(),
        policy=policy,
    )


def create(name: str, constants: Constants) -> Seat:
    """Make a pool and join it. Raises PoolExistsError, PoolFullError; nothing is left behind then, nor by an interrupt."""
    segment = segments.create(name, constants)
    semaphores: Semaphores = []
    try:
        segment.write_epoch(1, choose_origin(constants.geometry, 0))
        gate = _gate(segment)
        return gate.run(_publish, segment, gate, semaphores)
    except BaseException:
        undo_create(segment, semaphores)
        raise


def _publish(segment: Segment, gate: ByteLock, semaphores: Semaphores) -> Seat:
    # The row before the name, so that nobody finds the pool abandoned. Whoever attaches waits at the gate for the semaphores; if
    # this process dies before they are there, the next to attach makes them.
    row = take_row(segment, segment.fd)
    segment.link()
    return Seat(segment, gate, row, _open_semaphores(segment, semaphores))


def undo_create(segment: Segment, semaphores: Semaphores) -> None:
    """After an error or interrupt before the pool was given out: remove it if nobody else is attached by now, and close."""
    try:
        if segment.fd >= 0:
            _gate(segment).run(_remove_unused, segment)
    finally:
        close_semaphores(semaphores)
        segment.close()


def undo_attach(segment: Segment, semaphores: Semaphores) -> None:
    """The same for an attachment: as its process's end would."""
    if segment.constants.persistent:
        close_semaphores(semaphores)
        segment.close()
    else:
        undo_create(segment, semaphores)


def _remove_unused(segment: Segment) -> None:
    if not _is_in_use(segment):
        remove(segment)


def attach(name: str) -> Seat:
    """Join the pool of that name. Raises what `segment.attach` and `take_row` do; what is refused is left as it is."""
    for _ in range(_RACE_TRIES):
        segment = segments.attach(name)
        semaphores: Semaphores = []
        try:
            gate = _gate(segment)
            seat = gate.run(_join, segment, gate, semaphores)
        except BaseException:
            close_semaphores(semaphores)
            segment.close()
            raise
        if seat is not None:
            return seat
        segment.close()  # the last one left between our look-up and the gate
    raise PoolBusyError(f"pool {name!r} came and went {_RACE_TRIES} times while it was being attached. Try again.")


def _join(segment: Segment, gate: ByteLock, semaphores: Semaphores) -> Seat | None:
    if not segment.is_linked():
        return None
    is_alone = not _is_in_use(segment)
    row = take_row(segment, segment.fd)
    # A process that was killed in `reset` took all the tokens along. Each would cost whoever wants it next a wait, and this
    # process one for nearly every stripe. Where nobody else is attached nobody is inside a lock: so they are put back.
    return Seat(segment, gate, row, _open_semaphores(segment, semaphores, refill=is_alone))


def _open_semaphores(segment: Segment, opened: Semaphores, *, refill: bool = False) -> Semaphores:
    constants = segment.constants
    return open_semaphores(segment.pool_name, constants.pool_id, constants.geometry.stripe_count, opened, refill=refill)


def leave(attachment: Attachment) -> None:
    """Fold the row, and remove the pool if that was the last and it is not persistent. Under the gate; again is harmless."""
    attachment.leave()
    if not attachment.segment.constants.persistent:
        _remove_unused(attachment.segment)


def unlink(name: str) -> None:
    """Remove a pool that nobody is attached to. Raises PoolBusyError while somebody is, and what `segment.attach` does."""
    segment = segments.attach(name)
    try:
        _gate(segment).run(_unlink, segment)
    finally:
        segment.close()


def _unlink(segment: Segment) -> None:
    if _is_in_use(segment):
        raise PoolBusyError(
            f"pool {segment.pool_name!r}: processes are attached, and removing its name would cut them off from those to come. "
            "Nothing was changed. Close them first; a pool that is not persistent then goes by itself."
        )
    remove(segment)


def remove_abandoned(segment: Segment, *, dry_run: bool) -> bool:
    """Remove a pool that has a name, is not persistent and is used by nobody; whether it is such a one. Never waits."""
    if segment.constants.persistent or others_hold(segment.fd, GATE_BYTE) or _is_in_use(segment):
        return False
    return _gate(segment).run(_remove_abandoned, segment, dry_run)


def _remove_abandoned(segment: Segment, dry_run: bool) -> bool:  # noqa: FBT001 - `run` passes no keywords
    is_abandoned = segment.is_linked() and not _is_in_use(segment)
    if is_abandoned and not dry_run:
        remove(segment)
    return is_abandoned


def remove(segment: Segment) -> None:
    """Remove the semaphores, which are named after this very pool, and the name, unless it leads elsewhere by now.

    Under the gate.
    """
    unlink_semaphores(segment.constants.pool_id, segment.constants.geometry.stripe_count)
    segment.unlink()


def reset(attachment: Attachment) -> None:
    """Make the pool empty with one store. Under the gate and all stripes' locks.

    The word holds the count of resets and the origin of refs: every stripe of an older count reads as empty, and every older
    ref falls outside the arena. Raises PoolBusyError while anyone else is attached.
    """
    segment = attachment.segment
    if _is_in_use(segment):
        raise PoolBusyError(
            f"pool {segment.pool_name!r}: others are attached, and their refs would become invalid. Nothing was changed. Close "
            "them first."
        )
    epoch, origin = segment.read_epoch()
    epoch += 1
    if epoch > MAX_EPOCH:
        raise PoolError(f"pool {segment.pool_name!r} was reset {epoch - 2} times, the most there can be. Make it anew.")
    segment.write_epoch(epoch, choose_origin(segment.constants.geometry, origin))
    attachment.forget_ledger()


def choose_origin(geometry: Geometry, previous: int) -> int:
    """A random origin for refs, a multiple of 8, at which no ref from the previous one falls inside the arena."""
    while True:
        origin = MIN_ORIGIN + secrets.randbelow(MIN_ORIGIN - geometry.arena_size) // 8 * 8
        if abs(origin - previous) >= geometry.arena_size:
            return origin


def _is_in_use(segment: Segment) -> bool:
    """Whether another description, of whatever process, holds a row."""
    return others_hold(segment.fd, PROCESS_BYTES, segment.constants.geometry.process_count)


def _gate(segment: Segment) -> ByteLock:
    return ByteLock(segment, GATE_BYTE, f"pool {segment.pool_name!r}, attaching and leaving")
