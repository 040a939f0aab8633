"""Remote flushes of the VMM by vCPU: IPIs to those in the guest alone, others at their next VM entry; their cost."""

from __future__ import annotations

import pytest

from fastmmu import Config, CostModel, Host
from fastmmu.machine.costs import cycles
from tests.support.host_events import SMALL, few

NAMES = ("remote_sent", "remote_ipis", "remote_asked", "remote_kicked", "remote_deferred")
EACH = pytest.mark.parametrize("vmm", ["kernel", "python"])


def parts(host: Host, vcpu: int) -> tuple[int, ...]:
    counters = host.counters(vcpu)
    return tuple(counters[name] for name in NAMES)


@EACH
@pytest.mark.parametrize("mmu", ["ept", "shadow"])
def test_a_preempted_vcpu_flushes_when_it_gets_a_cpu(mmu: str, vmm: str) -> None:
    """Three vCPUs, two CPUs: 2 has taken CPU 0 from 0, and 1 stands still in the guest on CPU 1."""
    host = Host([(SMALL.replace(mmu=mmu, kvm="6.1", vmm=vmm), 3)], cpus=2)
    (machine,) = host.machines
    for vcpu, cpu in ((0, 0), (2, 0), (1, 1)):
        host.run(vcpu, cpu, *few())
    host.place(2, 0)
    before = [parts(host, vcpu) for vcpu in range(3)]
    exits = [host.counters(vcpu)["vm_exits"] for vcpu in range(3)]
    flushes = [host.counters(vcpu)["invept"] + host.counters(vcpu)["invvpid"] for vcpu in range(3)]
    machine.vmm.start_dirty_log(0)
    asked = [tuple(b - a for a, b in zip(before[vcpu], parts(host, vcpu), strict=True)) for vcpu in range(3)]
    assert asked == [(0, 0, 1, 0, 1), (0, 0, 1, 1, 0), (1, 1, 0, 0, 0)]
    assert host.counters(0)["vm_exits"] == exits[0]  # nobody wakes it for that
    for vcpu, cpu in ((1, 1), (0, 0)):
        host.place(vcpu, cpu)
        found = host.counters(vcpu)
        assert found["invept"] + found["invvpid"] > flushes[vcpu]
    assert host.counters(1)["vm_exits"] == exits[1] + 1  # the kick
    assert host.counters(0)["vm_exits"] == exits[0]  # the VM entry that it was to make anyway


@EACH
def test_parts_add_up(vmm: str) -> None:
    """Of all vCPUs they are what the machine has."""
    host = Host([(SMALL.replace(mmu="shadow", vmm=vmm), 3)], cpus=2)
    for turn in range(12):
        host.run(turn % 3, turn % 2, *few())
    totals, each = host.totals(), [parts(host, vcpu) for vcpu in range(3)]
    sent, ipis, asked, kicked, deferred = (sum(column) for column in zip(*each, strict=True))
    assert (sent, asked, ipis) == (totals["remote_flushes"], totals["flush_requests"], totals["ipis"])
    assert kicked == ipis
    assert min(sent, ipis, deferred) > 0
    assert kicked + deferred <= asked


def test_what_they_cost() -> None:
    costs = CostModel.load()
    config = Config(mmu="ept", vpid=True)
    found = cycles({"remote_sent": 3, "remote_ipis": 5, "remote_asked": 7, "remote_kicked": 2}, config, costs)
    assert found == {"remote_flushes": 3 * costs.flush.remote + 5 * costs.flush.remote_ipi}
    assert cycles({"remote_sent": 3}, config.native, costs) == {}
