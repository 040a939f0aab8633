"""Huge pages of the host: which 2 MB the VMM maps with one entry; what changes when the host makes or breaks one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastmmu import Config, Machine, Vmm, simulate
from fastmmu.cache.frame_map import host_frame_plan
from fastmmu.errors import ConfigError, StateError
from fastmmu.ops import Op
from fastmmu.reference.cache.frame_map import whole_blocks
from tests.support.event_lists import program
from tests.support.vmm_tables import guest_memory_at, leaves

PAGE, AREA = 0x4000_0000, 1 << 21
CONFIG = Config(
    mmu="ept", kvm="6.1", vpid=True, memory="256M", host_thp="always", tlb="strict", find_missing_flushes=True
)
SCHEMES: list[dict[str, Any]] = [
    {}, {"vmm": "python"}, {"tdp_mmu": False}, {"vendor": "amd"}, {"mmu": "shadow", "pages": "2m"},
    {"mmu": "shadow", "pages": "2m", "vmm": "python"},
]  # fmt: skip
FRAMES = ("linear", "buddy:0", "buddy:0.3:1", "buddy:0.8:5", "buddy:1", "shuffled:2")


def touched(machine: Machine, pages: list[int]) -> list[int]:
    out = np.zeros(len(pages), np.uint64)
    addr = np.array([PAGE + 4096 * page for page in pages], np.uint64)
    machine.run(np.full(len(pages), Op.WRITE, np.uint8), np.ones(len(pages), np.uint8), addr, out)
    assert machine.counters()["stale_uses"] == 0
    return out.tolist()


SOME = [512 * i + i for i in range(60)]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("frames", FRAMES)
def test_the_vmm_maps_2_mb_where_the_host_has_one_page(scheme: dict[str, Any], frames: str) -> None:
    machine = Machine(CONFIG.replace(**{"pages": "2m"} | scheme, host_frames=frames))
    came = touched(machine, SOME)
    share, seed = host_frame_plan(frames)
    whole, base = whole_blocks(share, seed, machine.memory.nbytes), guest_memory_at(machine)
    found = {gpa & -AREA: 0 for gpa in came}
    for leaf in leaves(machine):
        if leaf.gpa & -AREA in found:
            found[leaf.gpa & -AREA] = leaf.size
    assert set(found.values()) <= {4096, AREA}
    assert found == {gpa: AREA if whole(base + gpa) else 4096 for gpa in found}
    share_huge = sum(size == AREA for size in found.values()) / len(found)
    assert abs(share_huge - (1 - (share or 0.0))) < 0.3
    assert share_huge in {0.0, 1.0} or frames in {"buddy:0.3:1", "buddy:0.8:5"}


def test_the_guest_sees_none_of_it_and_the_vmm_exits_less() -> None:
    pages = np.random.default_rng(0).integers(0, 512 * 40, 4000).tolist()
    came, exits, refs = [], [], []
    for fields in ({"host_thp": "never"}, {"host_frames": "buddy:0.7:3"}, {"host_frames": "buddy:0.2:3"}, {}):
        machine = Machine(CONFIG.replace(tlb="skylake", find_missing_flushes=False, **fields))
        out = np.zeros(len(pages), np.uint64)
        addr = np.array(pages, np.uint64) * np.uint64(4096)
        machine.run(np.full(len(pages), Op.WRITE, np.uint8), np.ones(len(pages), np.uint8), addr, out)
        came.append(out.tolist())
        counters = machine.counters()
        exits.append(counters["vm_exits"])
        refs.append(counters["ept_walk_refs"])
    assert came[0] == came[1] == came[2] == came[3]
    assert exits == sorted(exits, reverse=True)
    assert refs == sorted(refs, reverse=True)
    assert len(set(exits)) == len(set(refs)) == 4


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_host_makes_one_and_breaks_it(scheme: dict[str, Any]) -> None:
    machine = Machine(CONFIG.replace(**{"pages": "2m"} | scheme, host_thp="never"))
    vmm = machine.vmm
    came = touched(machine, [0, 1, 2, 700])
    sizes = lambda: sorted(leaf.size for leaf in leaves(machine) if leaf.gpa & -AREA == came[0] & -AREA)  # noqa: E731
    small = sizes()
    assert set(small) == {4096}
    page = came[0] >> 12
    assert vmm.make_huge(0, page + 5)
    assert sizes() == []
    assert not vmm.make_huge(0, page)
    before = machine.counters()["vm_exits"]
    assert touched(machine, [2, 1, 9]) == [came[2], came[1], came[0] + 9 * 4096]
    assert sizes() == [AREA]
    assert machine.counters()["vm_exits"] == before + 1
    assert vmm.make_huge(0, page, huge=False)
    assert sizes() == []
    assert touched(machine, [0, 1, 2, 700]) == came
    assert set(sizes()) == {4096}
    assert 3 <= len(sizes()) <= 8  # the older MMU maps neighbours as well
    with pytest.raises(StateError, match="no pages"):
        vmm.make_huge(0, 1 << 40)


def test_kvm_in_python_does_the_same() -> None:
    for mmu in ("ept", "shadow"):
        for frames in ("buddy:0.5:4", "linear"):
            config = Config(kvm="6.1", memory="256M", pages="thp", host_thp="always", host_frames=frames).replace(
                mmu=mmu
            )
            one, other = (simulate(program(4_000), config.replace(vmm=vmm)) for vmm in ("kernel", "python"))
            assert one.counters == other.counters


def test_where_it_cannot_be() -> None:
    for fields in ({"host_pages": "2m"}, {"host_memory": "1M"}, {"host_thp": "sometimes"}):
        with pytest.raises(ConfigError, match="host_thp"):
            Config(**{"mmu": "ept", "host_thp": "always"} | fields)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="host_thp"):
        Config(mmu="ept", host_frames="buddy:0.5")
    with pytest.raises(StateError, match="host_thp"):
        Machine(Config(mmu="ept", memory="64M")).vmm.make_huge(0, 600)
    caches = Machine(Config(mmu="ept", memory="64M", host_thp="always", host_frames="buddy:0.5", caches="skylake"))
    with pytest.raises(StateError, match="caches"):
        caches.vmm.make_huge(0, 600)
    assert not Machine(CONFIG).vmm.make_huge(0, 600)
    assert isinstance(caches.vmm, Vmm)
