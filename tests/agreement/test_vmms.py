"""Both VMMs on a part of each trace; `python -m tests.agreement.vmms` is the whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastmmu.trace import bundled, read_trace
from fastmmu.trace.system import SystemTrace
from tests.agreement import vmms
from tests.conformance import systems

SYSTEMS = systems.traces(systems.data_directory()) or systems.traces(systems.sample_directory())


@pytest.mark.parametrize("name", bundled())
def test_bundled_traces(name: str) -> None:
    trace = read_trace(bundled()[name]).head(100_000)
    runs = [*vmms.programs(trace), *vmms.tpr_traffic(trace)]
    assert len(runs) == 18
    assert [each for each in runs if each.different] == []
    assert min(each.exits for each in runs) > 100


@pytest.mark.parametrize("path", SYSTEMS, ids=lambda path: path.name)
def test_system_traces(path: Path) -> None:
    trace = read_trace(path)
    assert isinstance(trace, SystemTrace)
    runs = [*vmms.system(trace.head(60_000))]
    assert len(runs) == 11
    assert [each for each in runs if each.different] == []
    assert min(each.exits for each in runs) > 20


def test_a_difference_is_found() -> None:
    one, other = {"vm_exits": 3, "walks": 5}, {"vm_exits": 3, "walks": 6}
    assert vmms.run("t", "s", [(one, 0.1), (other, 0.2)]).different == {"walks": (5, 6)}
