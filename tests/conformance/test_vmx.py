"""Recorded APIC virtualization and VM entries through the specification and the kernels; and that it can fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance import vectors, vmx
from tests.conformance.vmx_instructions import INSTRUCTIONS

SAMPLES = vmx.sets(vectors.sample_directory())
FULL = vmx.sets(vectors.data_directory())


def check(implementation: vmx.Implementation, path: Path, stride: int = 1) -> None:
    report = vmx.run_set(implementation, path, stride=stride)
    assert report.compared > 0
    if implementation is INSTRUCTIONS:  # some vectors begin in a state that VM entry does not leave
        assert report.compared > 2 * sum(report.not_compared.values())
    else:
        assert not report.not_compared
    assert report.mismatches == 0, "\n".join(report.examples)


def test_the_sample_has_both_sets_and_every_kind_of_ending() -> None:
    assert {vectors.set_name(path) for path in SAMPLES} == {"d_vapic", "d_vmentry"}
    endings = {vmx.expected(v)["k"] for path in SAMPLES for v in vectors.read(path)}
    assert endings == {"ok", "exit", "exc", "passthru", "vmfail"}


@pytest.mark.parametrize("path", SAMPLES, ids=vectors.set_name)
@pytest.mark.parametrize("implementation", [*vmx.IMPLEMENTATIONS, INSTRUCTIONS], ids=lambda chosen: chosen.name)
def test_sample(implementation: vmx.Implementation, path: Path) -> None:
    check(implementation, path)


@pytest.mark.skipif(not FULL, reason=f"skipped: no vectors in {vectors.data_directory().name}; set FASTMMU_VECTORS")
@pytest.mark.parametrize("path", FULL, ids=vectors.set_name)
@pytest.mark.parametrize("implementation", [*vmx.IMPLEMENTATIONS, INSTRUCTIONS], ids=lambda chosen: chosen.name)
def test_slice_of_the_full_set(implementation: vmx.Implementation, path: Path) -> None:
    check(implementation, path, stride=vectors.slice_stride(path, 1000))


@pytest.mark.parametrize(
    "name", ["k", "data", "rvi", "svi", "vppr", "pend", "reason", "q", "when", "ivec", "ch", "err"]
)
def test_a_wrong_field_is_a_mismatch(name: str) -> None:
    class Wrong:
        name = "wrong"

        def changed(self, seen: vmx.Observed) -> vmx.Observed:
            if field in seen:
                value = seen[field]
                seen[field] = {**value, 0: 1} if field == "ch" else value + 1 if isinstance(value, int) else "?"
            return seen

        def vapic(self, v: vectors.Vector) -> vmx.Observed:
            return self.changed(vmx.KERNEL.vapic(v))

        def vmentry(self, v: vectors.Vector) -> vmx.Observed:
            return self.changed(vmx.KERNEL.vmentry(v))

    field = name
    reports = [vmx.run_set(Wrong(), path) for path in SAMPLES]
    assert sum(report.mismatches for report in reports) > 0
    assert any(f"{name}: expected" in example for report in reports for example in report.examples)
