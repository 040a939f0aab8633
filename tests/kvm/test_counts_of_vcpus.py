"""What KVM counts of a vCPU (struct kvm_vcpu_stat: pf_fast among it) is counted of the vCPU that had the fault."""

from __future__ import annotations

from typing import Any

import pytest

from fastmmu import Config, Host
from fastmmu.machine.costs import exits_by_class
from tests.support.host_events import few

FIRST = 0x1000_0000


@pytest.mark.parametrize("vmm", ["kernel", "python"])
def test_rights_given_back(vmm: str) -> None:
    """Of a page that several vCPUs write, the one that writes first after a log was read has the fault."""
    config = Config(mmu="ept", kvm="6.1", vpid=True, memory="64M", exit_log=10_000, vmm=vmm)
    host = Host([(config, 3)], cpus=1)
    (machine,) = host.machines
    for vcpu in range(3):
        host.run(vcpu, 0, *few(20 * (vcpu + 1)))
    machine.vmm.start_dirty_log(0)
    before = [host.counters(vcpu)["pf_fast"] for vcpu in range(3)]
    machine.vmm.dirty_log(0)
    for vcpu in (1, 2):
        host.run(vcpu, 0, *few(20 * (vcpu + 1)))
    fast = [host.counters(vcpu)["pf_fast"] - n for vcpu, n in enumerate(before)]
    assert fast[0] == 0 < fast[1] < fast[2]
    found = [host.counters(vcpu) for vcpu in range(3)]
    assert sum(c["pf_fast"] for c in found) == machine.vmm.counters()["fast"]
    for vcpu, c in enumerate(found):  # each exit has a class, and the log says the same
        classes = exits_by_class(c)
        assert sum(classes.values()) == c["vm_exits"]
        assert classes.get("pf_fast", 0) == c["pf_fast"]
        logged = host.exit_log(vcpu)
        assert len(logged) == c["vm_exits"]


@pytest.mark.parametrize("vmm", ["kernel", "python"])
@pytest.mark.parametrize("mmu", ["ept", "shadow"])
def test_faults_that_begin_anew(mmu: str, vmm: str) -> None:
    config = Config(mmu=mmu, kvm="6.1", vpid=True, memory="64M", host_memory="256k", host_pages="untouched", vmm=vmm)
    host = Host([(config, 2)], cpus=2)
    (machine,) = host.machines
    found: list[dict[str, Any]] = []
    for _ in range(3):
        host.run(0, 0, *few(100))
        host.run(1, 1, *few(30))
        found = [host.counters(vcpu) for vcpu in range(2)]
    assert found[0]["pf_retry"] > found[1]["pf_retry"] > 0
    assert found[0]["pf_retry"] + found[1]["pf_retry"] == machine.vmm.counters()["retries"]
    for c in found:
        assert sum(exits_by_class(c).values()) == c["vm_exits"]
