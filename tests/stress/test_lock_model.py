"""The lock's protocol passes in every reachable state of its model, and Spin rejects each variant that is known to be wrong."""

from __future__ import annotations

import pytest

from tools.model.check import CASES, Case, check, missing_tools

missing = missing_tools()
pytestmark = pytest.mark.skipif(
    bool(missing), reason=f"the lock's model needs {' and '.join(missing)} (Debian, Ubuntu: apt install {' '.join(missing)})"
)
QUICK = [case for case in CASES if case.is_quick]


@pytest.mark.parametrize("case", [case for case in QUICK if case.is_sound], ids=lambda case: case.why)
def test_the_protocol_as_coded_keeps_its_promise_in_every_reachable_state(case: Case) -> None:
    outcome = check(case)

    assert outcome.verdict == "accepted"
    assert outcome.states > 100_000  # it was not cut short


@pytest.mark.parametrize("case", [case for case in QUICK if not case.is_sound], ids=lambda case: case.variant)
def test_a_broken_variant_is_rejected(case: Case) -> None:
    outcome = check(case)

    assert outcome.verdict.startswith(f"rejected: {case.must_violate}")
