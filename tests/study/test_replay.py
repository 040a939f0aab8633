"""A whole Linux in every scheme."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastmmu import read_trace
from fastmmu.study.replay import SCHEMES, replay_schemes
from fastmmu.trace.system import SystemTrace
from tests.conformance import systems


@pytest.mark.parametrize("path", systems.traces(systems.sample_directory()), ids=lambda path: path.name)
def test_a_linux_in_every_scheme(path: Path) -> None:
    """No scheme changes an address, a fault or a page-table entry."""
    trace = read_trace(path)
    assert isinstance(trace, SystemTrace)
    ran = {r.scheme: r for r in replay_schemes(trace, memory="2G")}
    assert set(ran) == set(SCHEMES)
    for name, r in ran.items():
        assert r.found is not None, (name, r.why)
        assert r.found.accesses > 0
        assert r.found.wrong == 0, (name, r.found.line(), r.found.examples)
    lazy, synced = (ran[name].counters["vm_exits"] for name in ("shadow, Linux 6.1", "shadow, always in sync"))
    assert lazy < synced
    assert ran["EPT, logged"].logged == ran["EPT, logged by PML"].logged


@pytest.mark.parametrize("path", systems.traces(systems.sample_directory()), ids=lambda path: path.name)
def test_a_linux_on_amd(path: Path) -> None:
    """Over nested page tables as over an EPT, which exits as often where it has A and D flags; but CR4 exits."""
    trace = read_trace(path)
    assert isinstance(trace, SystemTrace)
    intel = {r.scheme: r for r in replay_schemes(trace, memory="2G")}
    for r in replay_schemes(trace, memory="2G", vendor="amd"):
        if r.scheme == "EPT, logged by PML":
            assert r.found is None
            continue
        assert r.found is not None
        assert r.found.wrong == 0, (r.scheme, r.found.line(), r.found.examples)
        exits = r.counters.get("exits_by_reason", {})
        if r.scheme.startswith("EPT"):
            assert not {"ept_violation", "ept_misconfig"} & set(exits)
            like = "EPT" if r.scheme == "EPT, no A/D flags" else r.scheme
            theirs = intel[like].counters["exits_by_reason"]
            assert exits["npf"] == theirs.get("ept_violation", 0) + theirs.get("ept_misconfig", 0)
