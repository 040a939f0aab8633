"""Huge pages of the guest kernel by policy: at a first touch, where programs ask for them, by khugepaged; splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmmu import Config, Machine, Simulation, read_trace, simulate
from fastmmu.errors import ConfigError, TraceError
from fastmmu.machine.thp_plan import ThpPlan, thp_plan
from fastmmu.ops import LAST_ACCESS, Op
from fastmmu.study.compare import configurations
from fastmmu.trace import Batch
from tests.support.event_lists import real_trace

PAGE, AREA = 0x4000_0000, 1 << 21
CONFIG = Config(mmu="ept", vpid=True, kvm="6.1", memory="256M", tlb="strict", find_missing_flushes=True, pages="thp")
SCHEMES: list[dict[str, Any]] = [
    {"mmu": "native"}, {"mmu": "shadow"}, {"mmu": "ept"}, {"mmu": "ept", "vendor": "amd"},
    {"mmu": "native", "pcid": True},
]  # fmt: skip


def run(rows: list[tuple[int, int]], **fields: Any) -> tuple[list[int], dict[str, Any]]:
    """Addresses of the accesses, counters."""
    machine, out = Machine(CONFIG.replace(**fields)), np.zeros(len(rows), np.uint64)
    op, addr = np.array([op for op, _ in rows], np.uint8), np.array([addr for _, addr in rows], np.uint64)
    machine.run(op, np.ones(len(rows), np.uint8), addr, out)
    assert machine.counters()["stale_uses"] == 0
    return out[op <= LAST_ACCESS].tolist(), machine.counters()


def touches(pages: int, step: int = 1, first: int = PAGE) -> list[tuple[int, int]]:
    return [(Op.WRITE, first + 4096 * i) for i in range(0, pages, step)]


@pytest.mark.parametrize("text", [
    "", "often", "never+khugepaged:1/1", "always+", "always+khugepaged", "always+khugepaged:1", "always+khugepaged:0/1",
    "always+khugepaged:1/0", "always+khugepaged:1/1:512", "always+khugepaged:1/1:-1", "madvise:4", 3, "always\0",
])  # fmt: skip
def test_what_is_no_policy_is_refused(text: object) -> None:
    with pytest.raises(ConfigError, match="thp"):
        Config(pages="thp", thp=text)  # type: ignore[arg-type]


def test_where_no_policy_can_be() -> None:
    assert thp_plan("madvise+khugepaged:4096/100:0") == ThpPlan("madvise", 4096, 100, 0)
    for fields in ({"pages": "4k"}, {"pages": "2m"}, {"premapped": True}, {"kernel_memory": "high"}):
        with pytest.raises(ConfigError, match="thp='always' needs pages=\"thp\""):
            Config(**{"pages": "thp", "thp": "always"} | fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_always_and_never(scheme: dict[str, Any]) -> None:
    fields = scheme | {"vpid": scheme["mmu"] != "native"}
    rows = touches(1024)
    huge, always = run(rows, thp="always", **fields)
    small, never = run(rows, thp="never", **fields)
    assert (always["thp_fault_alloc"], always["pages_touched"], never["thp_fault_alloc"]) == (2, 2, 0)
    assert never["pages_touched"] == len(set(huge)) == len(set(small)) == 1024
    assert always["tlb_misses"] < never["tlb_misses"]


def test_memory_that_is_fragmented_has_fewer() -> None:
    allocs = []
    for share in ("0", "0.5", "0.9", "1"):
        _, c = run(touches(512 * 90, 512), thp="always", frames=f"buddy:{share}:3")
        assert c["thp_fault_alloc"] + c["thp_fault_fallback"] == 90
        allocs.append(c["thp_fault_alloc"])
    assert allocs[0] == 90 > allocs[1] > allocs[2] > allocs[3] == 0
    # in order of first touch what is left of the last block of small pages
    rows = [(Op.MADVISE_NOHUGE, PAGE - AREA | 511), (Op.WRITE, PAGE - AREA), *touches(512 * 130, 512)]
    _, c = run(rows, thp="always")
    assert (c["thp_fault_alloc"], c["thp_fault_fallback"]) == (125, 5)


def test_what_programs_advise() -> None:
    def allocs(rows: list[tuple[int, int]], thp: str) -> int:
        return int(run([*rows, (Op.WRITE, PAGE + 8192)], thp=thp)[1]["thp_fault_alloc"])

    whole, part = (Op.MADVISE_HUGE, PAGE | 511), (Op.MADVISE_HUGE, PAGE | 510)
    no = (Op.MADVISE_NOHUGE, PAGE + 4096 * 511)
    for rows, madvise, always in (
        ([], 0, 1), ([whole], 1, 1), ([part], 0, 0), ([no], 0, 0), ([whole, no], 0, 0), ([no, whole], 1, 1),
        ([part, (Op.MADVISE_HUGE, PAGE + 4096 * 511)], 1, 1), ([(Op.MADVISE_HUGE, PAGE - 4096 | 1023)], 1, 1),
        ([whole, (Op.MUNMAP, PAGE | 511)], 0, 1), ([part, (Op.MUNMAP, PAGE | 511)], 0, 1),
        ([whole, (Op.SWITCH, 1)], 0, 1), ([whole, (Op.FORK, 1), (Op.SWITCH, 1)], 1, 1),
        ([no, (Op.FORK, 1), (Op.SWITCH, 1)], 0, 0), ([whole, (Op.SWITCH, 3), (Op.FORK, 7), (Op.SWITCH, 7)], 0, 1),
    ):  # fmt: skip
        assert (allocs(rows, "madvise"), allocs(rows, "always"), allocs(rows, "never")) == (madvise, always, 0), rows
    with pytest.raises(TraceError, match="0x800000000fff"):
        run([(Op.MADVISE_HUGE, (1 << 47) - 4096 | 1)])


def test_many_areas_are_inherited() -> None:
    """More than the table has room for: it grows meanwhile."""
    rows = [(Op.MADVISE_HUGE, PAGE + i * AREA | 511) for i in range(40)]
    rows += [(Op.FORK, 1), (Op.SWITCH, 1), *touches(512 * 40, 512)]
    assert run(rows, thp="madvise")[1]["thp_fault_alloc"] == 40


def test_where_pages_of_4_kb_stand_a_first_touch_gets_one() -> None:
    rows = [(Op.MADVISE_NOHUGE, PAGE | 511), (Op.WRITE, PAGE), (Op.MADVISE_HUGE, PAGE | 511), (Op.WRITE, PAGE + 4096)]
    assert run(rows, thp="always")[1]["thp_fault_alloc"] == 0
    rows = [*rows, (Op.MUNMAP, PAGE | 511), (Op.WRITE, PAGE)]  # the table went with its pages
    assert run(rows, thp="always")[1]["thp_fault_alloc"] == 1


@pytest.mark.parametrize("pages", ["thp", "2m"])
def test_a_part_of_a_huge_page_that_changes(pages: str) -> None:
    fields = {"pages": "thp", "thp": "always"} if pages == "thp" else {"pages": "2m"}
    whole, part = PAGE | 511, PAGE + 4096 * 7
    came, c = run([*touches(512, 3), (Op.MUNMAP, part), *touches(512, 3)], **fields)
    assert (c["thp_split_pmd"], c["pages_touched"]) == ((1, 1) if pages == "thp" else (0, 2))
    came, c = run([*touches(8), (Op.MUNMAP, part), *touches(8)], **fields)
    assert (c["thp_split_pmd"], c["pages_touched"]) == ((1, 2) if pages == "thp" else (0, 2))
    assert came[:7] == came[8:15]
    for op, writes in ((Op.PROTECT, 1), (Op.UNPROTECT, 0)):
        _, c = run([*touches(9), (op, part), *touches(9)], **fields)
        assert (c["thp_split_pmd"], c["write_rights"]) == (pages == "thp", writes)
        _, c = run([*touches(9), (op, whole), *touches(9)], **fields)
        assert (c["thp_split_pmd"], c["write_rights"]) == (0, writes)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("frames", ["first-touch", "buddy:0.5"])
def test_a_huge_page_that_is_shared_is_copied_by_4_kb(scheme: dict[str, Any], frames: str) -> None:
    """do_huge_pmd_wp_page; of its own pages each is free when the last has given it back."""
    fields = scheme | {"vpid": scheme["mmu"] != "native", "frames": frames, "thp": "always"}
    rows = [*touches(8), (Op.FORK, 1), (Op.WRITE, PAGE), (Op.READ, PAGE), (Op.READ, PAGE + 4096), (Op.SWITCH, 1)]
    rows += [(Op.READ, PAGE), (Op.READ, PAGE + 4096), (Op.WRITE, PAGE), (Op.WRITE, PAGE + 4096), (Op.READ, PAGE + 8192)]
    came, c = run(rows, **fields)
    mine, theirs = came[8:11], came[11:]
    assert mine[0] == mine[1] != came[0]
    assert mine[2] == came[1]
    assert theirs[:2] == came[:2]
    assert theirs[2] == came[0]  # nobody else has it any more
    assert theirs[3] != came[1]
    assert theirs[4] == came[2]
    assert (c["thp_split_pmd"], c["cow_copies"], c["write_rights"], c["thp_fault_alloc"]) == (2, 2, 1, 1)


def khugepaged(scan: str, rows: list[tuple[int, int]], **fields: Any) -> dict[str, Any]:
    more = [(Op.READ, PAGE)] * 2000
    return run([(Op.MADVISE_NOHUGE, PAGE | 2047), *rows, (Op.MADVISE_HUGE, PAGE | 2047), *more],
               thp=f"madvise+khugepaged:{scan}", **fields)[1]  # fmt: skip


def test_khugepaged_goes_by_max_ptes_none() -> None:
    for there, none, collapses in ((1, 511, 1), (1, 510, 0), (2, 510, 1), (100, 412, 1), (100, 411, 0), (512, 0, 1)):
        c = khugepaged(f"512/1000:{none}", touches(there))
        assert (c["collapses"], c["thp_fault_alloc"]) == (collapses, 0), (there, none)
    assert khugepaged("512/100", [*touches(1), (Op.UNMAP, PAGE)])["collapses"] == 1  # the accesses behind it touch one
    assert khugepaged("512/100", [*touches(9), (Op.PROTECT, PAGE + 4096)])["collapses"] == 0


def test_khugepaged_collapses_earlier_at_a_higher_rate() -> None:
    rows = [row for i in range(4) for row in touches(5, 1, PAGE + i * AREA)]
    misses, found = [], []
    for scan in ("2048/100", "512/100", "512/400", "512/1500", "512/5000"):
        c = khugepaged(scan, rows)
        found.append(c["collapses"])
        misses.append(c["kernel_accesses"])
    assert found == [4, 4, 4, 1, 0]
    assert misses == sorted(misses, reverse=True)


def test_khugepaged_goes_round_and_ends_without_a_block() -> None:
    no, yes = (Op.MADVISE_NOHUGE, PAGE | 511), (Op.MADVISE_HUGE, PAGE | 511)
    rows = [row for process in (5, 2, 9) for row in ((Op.SWITCH, process), no, (Op.WRITE, PAGE), yes)]
    more = [(Op.READ, PAGE)] * 300
    _, c = run([*rows, *more], thp="madvise+khugepaged:512/100")
    assert (c["collapses"], c["khugepaged_full_scans"]) == (3, 0)  # an area each time; process 0 has nothing
    _, c = run([*rows, *more], thp="madvise+khugepaged:100000/100")
    assert (c["collapses"], c["khugepaged_full_scans"]) == (3, 3)
    _, c = run([*rows, *more], thp="madvise+khugepaged:100000/100", frames="buddy:1:2")
    assert (c["collapses"], c["thp_collapse_alloc_failed"], c["thp_fault_fallback"]) == (0, 3, 0)


@pytest.mark.parametrize("mmu", ["native", "shadow", "ept"])
def test_no_result_depends_on_how_events_come(mmu: str) -> None:
    """In one call, in pieces of any length."""
    config = Config(mmu=mmu, kvm="6.1", memory="1G", pages="thp", thp="madvise+khugepaged:1000/777",  # type: ignore[arg-type]
                    frames="buddy:0.9:1", exit_every=501)  # fmt: skip
    batches = list(real_trace().head(30_000).batches())
    op, size, addr = (np.concatenate([getattr(b, name) for b in batches]) for name in ("op", "size", "addr"))
    areas = np.unique(addr >> np.uint64(21)) << np.uint64(21) | np.uint64(511)
    op = np.concatenate([op[:9000], np.full(len(areas), Op.MADVISE_HUGE, np.uint8), op[9000:]])
    size, addr = (
        np.concatenate([column[:9000], more.astype(column.dtype), column[9000:]])
        for column, more in ((size, np.zeros(len(areas))), (addr, areas))
    )
    found = []
    for piece in (40_000, 777, 1000, 61):
        run_ = Simulation(config)
        for at in range(0, len(op), piece):
            part = slice(at, at + piece)
            run_.feed(Batch(op[part], size[part], addr[part]))
        found.append(run_.result().counters)
    assert found[0]["collapses"] > 0
    assert all(other == found[0] for other in found)


@pytest.mark.parametrize("form", ["npy", "npz"])
def test_traces_carry_what_programs_advise(form: str, tmp_path: Path) -> None:
    op, addr = np.array([Op.MADVISE_HUGE, Op.WRITE], np.uint8), np.array([PAGE | 511, PAGE], np.uint64)
    path, size = tmp_path / f"t.{form}", np.full(2, 8, np.uint8)
    if form == "npz":
        np.savez(path, op=op, size=size, addr=addr)
    else:
        rows = np.zeros(2, [("addr", "u8"), ("size", "u1"), ("op", "u1")])
        rows["addr"], rows["size"], rows["op"] = addr, size, op
        np.save(path, rows)
    counters = simulate(read_trace(path), Config(pages="thp", thp="madvise")).counters
    assert counters["thp_fault_alloc"] == 1


def test_comparisons_have_policies_with_their_pages_alone() -> None:
    found = configurations(["native", "ept"], ["4k", "thp"], thp="always", frames="buddy:0.5", defrag="always")
    assert [(config.pages, config.thp, config.defrag) for config in found] == [
        *[("4k", None, "never")] * 2, *[("thp", "always", "always")] * 2,
    ]  # fmt: skip
    with pytest.raises(ConfigError, match='needs pages="thp"'):
        configurations(["native"], ["4k"], thp="always")
