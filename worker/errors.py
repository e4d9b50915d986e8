"""What can go wrong around the router; each message says what is still true."""

from __future__ import annotations


class WorkerError(Exception):
    """Base of the errors of this package."""


class FrameError(WorkerError):
    """Bytes that are no bus frame."""


class BusError(WorkerError):
    """The bus refused something; only the connection named in the message is affected."""


class BusProtocolError(BusError):
    """The other end sent what is not a frame, or speaks another kind of key."""


class BusClosedError(BusError):
    """The connection is closed: frames still in its queue were not sent."""


class HostError(WorkerError):
    """libp2p refused to listen or to dial; the host goes on without that address."""


class WireError(WorkerError):
    """What a peer sent is no RPC."""


class FleetError(WorkerError):
    """The fleet could not be started or kept up; all of its processes have ended."""


class NodeError(WorkerError):
    """A request of an application failed; its node goes on."""


class RequestRefusedError(NodeError):
    """The owner shard refused the request, and nothing has changed; its reason is the text."""


class ShardLostError(NodeError):
    """The owner shard went away, or stayed away, during the request: it may or may not have been carried out."""


def leaves(error: BaseException) -> list[BaseException]:
    """The exceptions in a group of groups, to be said one by one."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for member in error.exceptions for leaf in leaves(member)]
    return [error]
