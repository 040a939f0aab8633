"""VPIDs given out by a VMM in Python: those of the kernels at every moment, of one's own choice; what is refused."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from fastmmu import FastmmuError, Host, Kvm, Machine, PolicyError
from fastmmu.exits import Exit
from tests.support.host_events import BARE, SMALL, few

VPIDS = SMALL.replace(vpid=True)


def vpids(host: Host) -> list[int]:
    """Of all vCPUs that live."""
    return [host.vpid(vcpu) for machine in host.machines for vcpu in host.vcpus_of(machine)]


# ---- as the kernels' -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tpr", [None, "flexpriority"])
def test_both_vmms_give_out_the_same_vpids_at_every_moment(tpr: str | None) -> None:
    """One host of kernels, one of Python, and one where every machine has another: what comes and goes is the same."""
    base = VPIDS.replace(tpr=tpr)
    of_host: list[Callable[[int], Any]] = [
        lambda n: "kernel", lambda n: "python", lambda n: ("kernel", "python")[n & 1],
    ]  # fmt: skip
    made = 1
    hosts = [Host([base.replace(vmm=vmm(0))], cpus=2) for vmm in of_host]
    random = Random(13)
    for _ in range(250):
        what, which = random.randrange(5), random.random()
        count, vpid = random.randrange(1, 5), random.random() < 0.8
        number = len(hosts[0].machines)
        for host, vmm in zip(hosts, of_host, strict=True):
            if what == 0 and number < 6:
                host.add(base.replace(vmm=vmm(made), vpid=vpid), count)
            elif what == 1 and number > 3:
                host.remove(host.machines[int(which * number)])
            else:
                machine = host.machines[int(which * number)]
                living = host.vcpus_of(machine)
                if what == 2 and living:
                    host.remove(living[count % len(living)])
                elif len(living) < 9:
                    host.run(host.add_vcpu(machine), 0, *few(20))
        made += what == 0
        of_kernels, *others = map(vpids, hosts)
        assert others == [of_kernels, of_kernels]
        assert {host.totals()["vpids"] for host in hosts} == {sum(v > 0 for v in of_kernels)}
    assert made > 20
    assert max(vpids(hosts[1])) < 60


def test_a_machine_alone_has_vpid_1() -> None:
    for vmm in ("kernel", "python"):
        machine = Machine(VPIDS.replace(vmm=vmm))
        assert machine.vmcs["vpid"] == 1
        assert Machine(VPIDS.replace(vmm=vmm, vpid=False)).vmcs["vpid"] == 0


# ---- rules of one's own ----------------------------------------------------------------------------------------------


class Highest(Kvm):
    """The highest number that is free, in place of the lowest."""

    def allocate_vpid(self, vcpu: Any) -> int:
        vpid = next(v for v in range(65535, 0, -1) if not self.vm.vpids.test_bit(v))
        self.vm.vpids.set_bit(vpid)
        return vpid


class Never(Kvm):
    """No number twice: nothing that is cached can ever be another's."""

    def free_vpid(self, vcpu: Any) -> None:
        pass


class Only(Kvm):
    """A machine has one VPID, its first vCPU's; the others run without."""

    def allocate_vpid(self, vcpu: Any) -> int:
        return super().allocate_vpid(vcpu) if vcpu.index == 0 else 0


def test_vpids_of_ones_own_choice() -> None:
    host = Host([(VPIDS.replace(vmm=Highest), 2), VPIDS], cpus=1)
    assert vpids(host) == [65535, 65534, 1]
    high, low = host.machines
    host.remove(0)
    assert vpids(host) == [65534, 1]
    for machine in (high, low):
        host.run(host.add_vcpu(machine), 0, *few())
    assert vpids(host) == [65534, 65535, 1, 2]
    assert high.vmcs["vpid"] == 65535
    host.remove(high)
    assert host.totals()["vpids"] == 2


def test_vpids_that_do_not_come_back() -> None:
    host = Host([VPIDS.replace(vmm=Never)], cpus=1)
    for n in range(5):
        host.remove(host.machines[0])
        (vcpu,) = host.vcpus_of(host.add(VPIDS.replace(vmm=Never)))
        assert host.vpid(vcpu) == n + 2
    assert host.totals()["vpids"] == 6


def test_vcpus_that_run_without() -> None:
    host = Host([(VPIDS.replace(vmm=Only, exit_every=10), 3)], cpus=1)
    assert vpids(host) == [1, 0, 0]
    for vcpu in range(3):
        host.run(vcpu, 0, *few(2000))
    assert host.counters(0)["tlb_misses"] < host.counters(1)["tlb_misses"]


# ---- what is refused -------------------------------------------------------------------------------------------------


def asks(answer: Callable[[Any], Any]) -> type[Kvm]:
    """A VMM that answers so where a VPID is asked for."""
    return type("Asks", (Kvm,), {"allocate_vpid": lambda self, vcpu: answer(self.vm.vpids)})


def set_and(answer: int, *taken: int) -> Callable[[Any], Any]:
    def of(bitmap: Any) -> int:
        for vpid in taken:
            bitmap.set_bit(vpid)
        return answer

    return of


WRONG: dict[str, tuple[Callable[[Any], Any], str]] = {
    "not set": (lambda bitmap: 7, "returned 7 and has set no VPID"),
    "another one": (set_and(7, 8), "returned 7 and has set 8:"),
    "two": (set_and(7, 7, 8), "returned 7 and has set 7, 8:"),
    "none, and one set": (set_and(0, 7), "returned 0 and has set 7:"),
    "another's": (set_and(1, 1), "VPID 1 is another vCPU's"),
    "another's, not set": (lambda bitmap: 1, "returned 1 and has set no VPID"),
    "too high": (set_and(65536, 65536), "vpid=65536 is outside 1..65535"),
    "the host's": (set_and(0, 0), "vpid=0 is outside 1..65535"),
    "below 0": (lambda bitmap: -1, "returned -1 and has set"),
    "nothing": (lambda bitmap: None, "allocate_vpid"),
    "no number": (lambda bitmap: "7", "allocate_vpid"),
    "gives another's back": (lambda bitmap: bitmap.clear_bit(1), "VPID 1 is not that of a vCPU that ends"),
}


@pytest.mark.parametrize("wrong", list(WRONG))
def test_wrong_vpids_are_refused(wrong: str) -> None:
    """None is lost, and the host can go on."""
    answer, says = WRONG[wrong]
    host = Host([VPIDS], cpus=1)
    free = host.free_memory
    for _ in range(3):
        with pytest.raises(FastmmuError, match=says):
            host.add(VPIDS.replace(vmm=asks(answer)))
        assert host.totals()["vpids"] == 1
        assert len(host.machines) == 1
        assert host.free_memory == free
    (vcpu,) = host.vcpus_of(host.add(VPIDS.replace(vmm="python")))
    assert host.vpid(vcpu) == 2
    host.run(vcpu, 0, *few())


def test_a_machine_without_vpids_gets_none() -> None:
    with pytest.raises(PolicyError, match=r"returned 5: the machine has no VPIDs; use Config\(vpid=True\)"):
        Machine(VPIDS.replace(vpid=False, vmm=asks(set_and(5, 5))))
    assert Machine(VPIDS.replace(vpid=False, vmm=asks(lambda bitmap: 0))).vmcs["vpid"] == 0


class Raises(Kvm):
    """Where it is told to."""

    at = ""

    def allocate_vpid(self, vcpu: Any) -> int:
        vpid = super().allocate_vpid(vcpu)
        self.told("allocate_vpid")
        return vpid

    def vcpu_load(self, vcpu: Any) -> None:
        super().vcpu_load(vcpu)
        self.told("vcpu_load")

    def vcpu_reset(self, vcpu: Any) -> bool:
        self.told("vcpu_reset")
        return super().vcpu_reset(vcpu)

    def free_vpid(self, vcpu: Any) -> None:
        self.told("free_vpid")
        super().free_vpid(vcpu)

    def told(self, at: str) -> None:
        if self.at == at:
            raise ZeroDivisionError(at)


@pytest.mark.parametrize("tpr", [None, "apicv"])
def test_a_vmm_that_raises_loses_no_vpid(monkeypatch: pytest.MonkeyPatch, tpr: str | None) -> None:
    config = VPIDS.replace(vmm=Raises, tpr=tpr)
    host = Host([VPIDS, (config, 2)], cpus=2)
    _, machine = host.machines
    for at in ("allocate_vpid", "vcpu_reset", "allocate_vpid"):
        monkeypatch.setattr(Raises, "at", at)
        with pytest.raises(ZeroDivisionError):
            host.add(config, 2)
        assert host.totals()["vpids"] == 3
    with pytest.raises(ZeroDivisionError):
        host.add_vcpu(machine)
    assert (host.totals()["vpids"], host.vcpus_of(machine)) == (3, (1, 2))
    monkeypatch.setattr(Raises, "at", "free_vpid")
    with pytest.raises(ZeroDivisionError):
        host.remove(2)
    assert (host.totals()["vpids"], host.vcpus_of(machine)) == (2, (1,))
    with pytest.raises(ZeroDivisionError):
        host.remove(1)
    assert (host.totals()["vpids"], host.vcpus_of(machine)) == (1, ())
    for at in ("allocate_vpid", "vcpu_load"):  # in place of the last one that ended
        monkeypatch.setattr(Raises, "at", at)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                host.add_vcpu(machine)
        assert (host.totals()["vpids"], host.vcpus_of(machine)) == (1, ())
    monkeypatch.setattr(Raises, "at", "")
    vcpu = host.add_vcpu(machine)
    assert host.vpid(vcpu) == 2
    host.run(vcpu, 1, *few())
    monkeypatch.setattr(Raises, "at", "free_vpid")
    with pytest.raises(ZeroDivisionError):
        host.remove(machine)
    assert (host.totals()["vpids"], len(host.machines)) == (1, 1)


def test_vpids_are_given_out_where_they_are_asked_for_alone() -> None:
    """A handler, and one that kept the bitmap, are refused."""
    kept: list[Any] = []

    class Takes(Kvm):
        def default(self, vcpu: Any, exit: Exit) -> int:
            bitmap = self.vm.vpids
            kept.append(bitmap)
            assert bitmap.test_bit(vcpu.vpid)
            assert not bitmap.test_bit(vcpu.vpid + 1)
            assert bitmap.find_first_zero_bit() == vcpu.vpid + 1
            for call in (bitmap.set_bit, bitmap.clear_bit):
                for vpid in (vcpu.vpid, vcpu.vpid + 1):
                    with pytest.raises(PolicyError, match=r"for allocate_vpid|for free_vpid"):
                        call(vpid)
            return 1

    machine = Machine(VPIDS.replace(vmm=Takes), guest_kernel=False, state=BARE["state"])
    machine.exit_instruction(10)
    (bitmap,) = kept
    for call in (bitmap.set_bit, bitmap.clear_bit, bitmap.test_bit):
        with pytest.raises(PolicyError, match="does not stand still"):
            call(3)
    with pytest.raises(PolicyError, match="does not stand still"):
        bitmap.find_first_zero_bit()


def test_where_all_are_taken_a_vcpu_runs_without() -> None:
    class Full(Kvm):
        def allocate_vpid(self, vcpu: Any) -> int:
            if vcpu.index == 0:
                for vpid in range(1, 65536):
                    self.vm.vpids.set_bit(vpid)
                assert self.vm.vpids.find_first_zero_bit() == 65536
                assert super().allocate_vpid(vcpu) == 0
                for vpid in range(2, 65536):
                    self.vm.vpids.clear_bit(vpid)
                return 1
            return super().allocate_vpid(vcpu)

    host = Host([(VPIDS.replace(vmm=Full), 2)], cpus=1)
    assert vpids(host) == [1, 2]
