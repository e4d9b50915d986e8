"""Reports and topics as plain data for programs.

The keys are what `--json` and `dump` promise: new ones may come, none goes or changes its meaning.
A value is under "text" if it is UTF-8 and under "base64" if not: always exactly one of them, so it comes back as it was.
"""

import base64
import binascii
import json
from dataclasses import asdict
from typing import Any, Final

from shmpool.inspection import Counters, Finding, TopicCount
from shmpool.report import ProcessReport, Report

SCHEMA: Final = 1


def value_to_data(value: bytes) -> dict[str, str]:
    """A value under "text" or "base64"."""
    try:
        return {"text": value.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


def line_to_value(line: str) -> bytes:
    """The value of one line of a dump. Raises ValueError for what is none."""
    data = json.loads(line)
    match data:
        case {"text": str(text)} if "base64" not in data:
            return text.encode()
        case {"base64": str(text)} if "text" not in data:
            try:
                return base64.b64decode(text, validate=True)
            except binascii.Error as error:
                raise ValueError(f"its base64 is damaged: {error}") from None
    raise ValueError('it needs a string under either "text" or "base64"')


def topic_to_data(topic: TopicCount) -> dict[str, Any]:
    return {"ref": topic.ref, **value_to_data(topic.value), "uses": topic.uses, "holds": topic.holds}


def finding_to_data(finding: Finding) -> dict[str, str]:
    return finding._asdict()


def summary_to_data(report: Report) -> dict[str, Any]:
    """One pool of `ls --json`."""
    header, fill = report.header, report.fill
    constants = header.constants
    return {
        "name": header.name,
        "path": header.path,
        "state": report.state,
        "problems": report.problems,
        "uid": header.uid,
        "mode": f"{header.mode:04o}",
        "created_ns": constants.created_ns if constants else None,
        "policy": str(constants.policy) if constants else None,
        "persistent": constants.persistent if constants else None,
        "version": header.version,
        "file_size": header.file_size,
        "memory_size": header.memory_size,
        "topics": fill.topics if fill else None,
        "capacity": fill.capacity if fill else None,
        "arena_used_size": fill.arena_used_size if fill else None,
        "live_processes": report.live_count,
        "dead_rows": len(report.processes) - report.live_count,
    }


def report_to_data(report: Report) -> dict[str, Any]:
    """What `inspect --json` prints. The hash key is not in it: who knows it can choose names that collide."""
    constants = report.header.constants
    data = {"schema": SCHEMA} | summary_to_data(report)
    data |= {
        "fingerprint": None if report.header.fingerprint is None else f"{report.header.fingerprint:016x}",
        "pool_id": f"{constants.pool_id:016x}" if constants else None,
        "options": None,
        "resets": report.resets,
        "fill": report.fill._asdict() if report.fill else None,
        "counters": _counters(report.total),
        "gate_locked": report.gate_locked,
        "grow_locked": report.grow_locked,
        "stripes": [asdict(stripe) for stripe in report.stripes],
        "probe_lengths": report.probe_lengths,
        "processes": [_process(process) for process in report.processes],
        "top": [topic_to_data(topic) for topic in report.top],
        "top_by_holds": [topic_to_data(topic) for topic in report.top_held],
    }
    if constants:
        geometry = constants.geometry
        data["options"] = {
            "capacity": geometry.capacity,
            "arena_size": geometry.arena_size,
            "stripe_count": geometry.stripe_count,
            "process_count": geometry.process_count,
            "max_value_size": geometry.max_value_size,
            "insert_budget": None if constants.insert_budget >= 1 << 63 else constants.insert_budget,
            "reserve": constants.reserve,
        }
    if report.topics is not None:
        data["topics_list"] = [topic_to_data(topic) for topic in report.topics]
    return data


def _process(process: ProcessReport) -> dict[str, Any]:
    return {
        "row": process.row,
        "pid": process.pid,
        "state": process.state,
        "command": process.command,
        "attached_ns": process.attached_ns,
        "counters": _counters(process.counters),
        "holds": process.holds,
    }


def _counters(counters: Counters | None) -> dict[str, int] | None:
    return asdict(counters) if counters else None
