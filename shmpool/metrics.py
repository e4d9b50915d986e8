"""A pool's figures for Prometheus, read anew from a view at each scrape."""

import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shmpool import report
from shmpool.errors import PoolNotFoundError
from shmpool.inspection import COUNTER_MEANINGS


class PoolCollector(Collector):
    """The figures of the pool of one name, whichever has it at the time."""

    def __init__(self, name: str) -> None:
        self._name = name

    def collect(self) -> Iterator[Metric]:
        try:
            seen = report.summarize(self._name)
        except PoolNotFoundError:
            seen = None
        is_up = seen is not None and not seen.problems
        yield self._gauge("up", "Whether the pool is there and could be read without a problem.", is_up)
        if seen is None:
            return
        yield self._gauge("memory_bytes", "Real memory behind the segment.", seen.header.memory_size)
        if seen.fill:
            fill = seen.fill
            yield self._gauge("topics", "Topics in the pool.", fill.topics)
            yield self._gauge("capacity_topics", "Topics it may hold.", fill.capacity)
            yield self._gauge("holds", "Holds of topics, those of killed processes included.", fill.holds)
            yield self._gauge("unheld_topics", "Topics that nobody holds.", fill.unheld)
            yield self._gauge("arena_used_bytes", "Bytes of records.", fill.arena_used_size)
            yield self._gauge("arena_size_bytes", "Bytes there may be of records.", fill.arena_size)
        processes = GaugeMetricFamily("shmpool_processes", "Rows of the process table.", labels=("pool", "state"))
        for state in ("running", "stopped", "dead"):
            processes.add_metric((self._name, state), sum(each.state == state for each in seen.processes))
        yield processes
        if seen.total:
            for name, count in asdict(seen.total).items():
                counter = CounterMetricFamily(f"shmpool_{name}", COUNTER_MEANINGS[name], labels=("pool",))
                counter.add_metric((self._name,), count)
                yield counter

    def _gauge(self, name: str, meaning: str, value: float) -> Metric:
        gauge = GaugeMetricFamily(f"shmpool_{name}", meaning, labels=("pool",))
        gauge.add_metric((self._name,), value)
        return gauge


def serve(name: str, host: str, port: int, say: Callable[[str], object]) -> None:
    """Serve until SIGINT or SIGTERM; says where, once it can be asked. Raises OSError for an address that is not to be had."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(PoolCollector(name))
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    server, thread = start_http_server(port, host, registry)
    shown = f"[{host}]" if ":" in host else host
    say(f"listening on http://{shown}:{server.server_port}/metrics")
    stop.wait()
    server.shutdown()
    thread.join()
    server.server_close()
