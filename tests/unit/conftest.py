"""Both engines make the same claims: what is tested of the pool is tested with each."""

from __future__ import annotations

import pytest

from shmpool import engine

BUILT = engine.ENGINE == "compiled"
WITH_EACH = {
    "test_pool", "test_store", "test_stripe", "test_inspection", "test_hostile", "test_view", "test_holding", "test_hold_calls",
    "test_quotas", "test_reuse", "test_hostile_holds",
}  # fmt: skip


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "chosen_engine" in metafunc.fixturenames:
        module = metafunc.module.__name__.rpartition(".")[2]
        kinds = ["compiled", "python"] if module in WITH_EACH else ["python"]
        kinds = ["compiled"] if module.startswith("test_engine") else kinds
        metafunc.parametrize("chosen_engine", kinds, indirect=True)


@pytest.fixture(autouse=True)
def chosen_engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine of every pool that is attached in this test from now on, by this process and those it starts."""
    if request.param == "compiled" and not BUILT:
        pytest.skip("the compiled engine was not built: it needs a C compiler when shmpool is installed")
    monkeypatch.setattr(engine, "ENGINE", request.param)
    monkeypatch.setenv("SHMPOOL_ENGINE", request.param)
