"""The exceptions of shmpool: each says what happened, what is still true and what to do."""


class PoolError(Exception):
    """Base of every error that shmpool raises about a pool."""


class PoolFullError(PoolError):
    """Memory, capacity, an insert budget or the process table is used up; nothing was changed."""


class PoolCorruptError(PoolError):
    """The segment contradicts itself or is not what its name claims; it was neither repaired nor removed."""


class PoolVersionError(PoolError):
    """The segment was laid out by another version of shmpool; it was left as it is."""


class StaleRefError(PoolError, LookupError):
    """A ref does not name a live record of this pool: its topic went, or it is of another pool, from before a reset, or none."""


class NotHeldError(PoolError):
    """This process gave back a hold that it does not have; nothing was changed."""


class PoolBusyError(PoolError):
    """Somebody else is in the way (another attached process, or this very thread further up its stack)."""


class PoolClosedError(PoolError):
    """This attachment was closed, or is a fork's copy that got no row of its own; others are not affected."""


class PoolNotFoundError(PoolError, FileNotFoundError):
    """No pool of that name exists on this host."""


class PoolExistsError(PoolError, FileExistsError):
    """The name is taken, by a pool or by some other file; it was not touched."""
