"""The VPID allocator: kernel and specification against the invariants of tlb.md §6, and worked example C1."""

from __future__ import annotations

from random import Random

import pytest

from fastmmu import StateError, VpidAllocator
from fastmmu.reference.kvm import vpid as spec

AnyAllocator = VpidAllocator | spec.VpidAllocator
KINDS = pytest.mark.parametrize("kind", [VpidAllocator, spec.VpidAllocator], ids=["kernel", "specification"])
MANY = 70_000


@KINDS
def test_c1_first_come_first_served_and_recycled(kind: type[AnyAllocator]) -> None:
    vpids = kind()
    assert 0 in vpids
    assert [vpids.alloc() for _ in range(3)] == [1, 2, 3]
    vpids.free(2)
    assert 2 not in vpids
    assert [vpids.alloc(), vpids.alloc()] == [2, 4]


@KINDS
def test_one_to_70_000_vcpus_are_created_and_freed(kind: type[AnyAllocator]) -> None:
    """No two live vCPUs share a VPID but 0; what is taken is what lives; the lowest free number is the next."""
    vpids, random = kind(), Random(7)
    live = [vpids.alloc() for _ in range(MANY)]
    assert live == [*range(1, 65536), *[0] * (MANY - 65535)]
    assert len(vpids) == 65535
    random.shuffle(live)
    for vpid in live[:40_000]:
        vpids.free(vpid)
    gone, live = {v for v in live[:40_000] if v}, live[40_000:]
    assert len(vpids) == 65535 - len(gone) == sum(v > 0 for v in live)
    assert all((v in vpids) is (v not in gone) for v in range(65536))
    again = [vpids.alloc() for _ in range(len(gone))]
    assert again == sorted(gone)
    assert vpids.alloc() == 0
    for vpid in [*live, *again]:
        vpids.free(vpid)
    assert len(vpids) == 0
    assert vpids.alloc() == 1


def test_kernel_and_specification_agree_in_any_order() -> None:
    """Creation and destruction in waves, so that the map is nearly empty, nearly full and full of holes in turn."""
    kernel, specification, random = VpidAllocator(), spec.VpidAllocator(), Random(3)
    live: list[int] = []
    highest = 0
    for wave in range(12):
        rising = wave % 2 == 0
        for _ in range(random.randrange(4_000, 9_000)):
            if live and random.random() > (0.9 if rising else 0.15):
                vpid = live.pop(random.randrange(len(live)))
                kernel.free(vpid)
                specification.free(vpid)
            else:
                vpid = kernel.alloc()
                assert vpid == specification.alloc()
                assert vpid not in live[-50:]
                live.append(vpid)
                highest = max(highest, vpid)
        assert len(kernel) == len(specification) == len(live) == len(set(live))
    assert highest > 5_000
    assert all((v in kernel) is (v in specification) for v in range(65536))


@KINDS
def test_what_nobody_has_cannot_be_freed(kind: type[AnyAllocator]) -> None:
    vpids = kind()
    vpids.free(0)
    for vpid in (1, 65535, 65536):
        with pytest.raises(StateError, match=f"VPID {vpid} is not given out"):
            vpids.free(vpid)
    vpids.free(vpids.alloc())
    with pytest.raises(StateError, match="VPID 1 is not given out"):
        vpids.free(1)
    assert -1 not in vpids
    assert 65536 not in vpids
