"""The slots that share one pool run at the end, when xdist hands tests out one or two at a time: so its workers meet there."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: "one_pool_per_run" in getattr(item, "fixturenames", ()))
