"""What `compare --explain` says of the TLB: the counters of the run, by structure, page size and cause."""

from __future__ import annotations

import pytest

from fastmmu import Config, simulate
from fastmmu.cli.main import main
from fastmmu.report import explain
from fastmmu.report.table import number
from fastmmu.trace import read_trace
from tests.conformance import systems

MM = systems.sample_directory() / "mm.rec.xz"


def rows(text: str) -> dict[str, list[str]]:
    """First words of a line → its figures."""
    found = {}
    for line in text.splitlines():
        name, _, rest = line.partition("  ")
        found[name] = rest.split()
    return found


@pytest.mark.parametrize("config", [Config(), Config(mmu="ept"), Config(mmu="ept", vpid=True)], ids=lambda c: c.name)
def test_the_figures_are_the_counters(config: Config) -> None:
    result = simulate(read_trace(MM), config)
    text = explain([result])
    assert f"TLB of {config.name}" in text
    found, tlb = rows(text), result.tlb
    for unit, title in (("l1d", "L1 data"), ("l1i", "L1 fetches"), ("l2", "L2"), ("psc", "paging structures")):
        counted = tlb[unit]
        assert sum(counted["hits"].values()) + counted["misses"] == counted["lookups"] > 0
        assert found[title][:2] == [number(counted["lookups"]), number(counted["misses"])]
        assert found[title][-2:] == [number(counted["fills"]), number(counted["evictions"])]
    assert ("guest-physical" in found) == (config.mmu == "ept")
    assert found["INVLPG"][0] == number(tlb["flushes"]["invlpg"])
    assert found["INVPCID type 0"][-1] == number(tlb["refill_misses"].get("invpcid_0", 0))
    assert ("VM entry and exit" in found) == (config.name == "EPT")
    assert ("lived through VM entries and exits" in text) == (config.name == "EPT+VPID")
    assert sum(tlb["refill_misses"].values()) <= result.counters["walks"]


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(MM), "--schemes", "native,ept+vpid", "--limit", "20k", "--explain", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert out.index("Where the cycles of an access go") < out.index("TLB of native") < out.index("TLB of EPT+VPID")
    assert main(["compare", str(MM), "--schemes", "native", "--limit", "20k", "--quiet"]) == 0
    assert "TLB of native" not in capsys.readouterr().out
    assert explain([]) == ""
