"""Ranges that the guest kernel unmaps and protects, fork with copy on write, a collapse when it is asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastmmu import Config, Machine, TraceError
from fastmmu.ops import LAST_ACCESS, Op

PAGE = 0x4000_0000
CONFIG = Config(mmu="ept", vpid=True, kvm="6.1", memory="256M", tlb="strict", find_missing_flushes=True)


def run(rows: list[tuple[int, int]], **fields: Any) -> tuple[list[int], dict[str, Any]]:
    """Addresses of the accesses, counters."""
    machine, out = Machine(CONFIG.replace(**fields)), np.zeros(len(rows), np.uint64)
    op, addr = np.array([op for op, _ in rows], np.uint8), np.array([addr for _, addr in rows], np.uint64)
    machine.run(op, np.ones(len(rows), np.uint8), addr, out)
    assert machine.counters()["stale_uses"] == 0
    return out[op <= LAST_ACCESS].tolist(), machine.counters()


@pytest.mark.parametrize(("pages", "by_page"), [(1, 1), (33, 33), (34, 0), (4096, 0)])
def test_a_range_is_one_flush(pages: int, by_page: int) -> None:
    """Up to 33 pages one by one; from the first to the last that were there."""
    touched = [(Op.WRITE, PAGE + 4096 * i) for i in range(0, pages, 8)] + [(Op.WRITE, PAGE + 4096 * (pages - 1))]
    _, c = run([*touched, (Op.MUNMAP, PAGE | pages - 1)])
    assert (c["invlpgs"], c["cr3_flushes"], c["munmaps"]) == (by_page, int(not by_page), 1)
    _, c = run([(Op.WRITE, PAGE + 4096 * 5), (Op.WRITE, PAGE + 4096 * 7), (Op.MUNMAP, PAGE | 511)])
    assert (c["invlpgs"], c["cr3_flushes"]) == (3, 0)
    _, c = run([(Op.MUNMAP, PAGE | 511), (Op.PROTECT, PAGE | 511)])
    assert (c["invlpgs"], c["cr3_flushes"]) == (0, 0)


def test_what_went_comes_back_empty_and_tables_are_used_again() -> None:
    rows = [(Op.WRITE, PAGE), (Op.WRITE, PAGE + 4096), (Op.MUNMAP, PAGE | 1), (Op.WRITE, PAGE + 4096), (Op.WRITE, PAGE)]
    came, c = run(rows)
    assert came[:2] == sorted(came[2:])
    assert c["pages_touched"] == 4
    large, c = run([*rows[:1], (Op.MUNMAP, PAGE + 4096 * 300), (Op.READ, PAGE)], pages="2m")
    assert c["pages_touched"] == 2  # it went as a whole
    assert large[0] == large[1]


def test_a_protected_page_gets_its_right_back_at_a_write() -> None:
    read = [(Op.WRITE, PAGE), (Op.PROTECT, PAGE), (Op.READ, PAGE), (Op.FETCH, PAGE)]
    came, c = run(read)
    assert (c["guest_faults"], c["write_rights"], c["protects"]) == (1, 0, 1)
    came, c = run([*read, (Op.MODIFY, PAGE), (Op.WRITE, PAGE)])
    assert (c["guest_faults"], c["write_rights"], len(set(came))) == (2, 1, 1)
    came, c = run([*read, (Op.UNPROTECT, PAGE), (Op.WRITE, PAGE)])
    assert (c["guest_faults"], c["write_rights"], c["invlpgs"]) == (1, 0, 1)


@pytest.mark.parametrize("pages", ["4k", "2m"])
@pytest.mark.parametrize("mmu", ["native", "ept", "shadow"])
def test_a_fork_shares_pages_until_one_writes(mmu: str, pages: str) -> None:
    rows = [
        (Op.WRITE, PAGE), (Op.FORK, 5), (Op.READ, PAGE), (Op.SWITCH, 5), (Op.READ, PAGE), (Op.WRITE, PAGE),
        (Op.READ, PAGE), (Op.SWITCH, 0), (Op.READ, PAGE), (Op.WRITE, PAGE), (Op.READ, PAGE),
    ]  # fmt: skip
    came, c = run(rows, mmu=mmu, vpid=mmu != "native", pages=pages)
    first, copy = came[0], came[3]
    assert copy != first
    assert came == [first, first, first, copy, copy, first, first, first]
    assert (c["forks"], c["cow_copies"], c["write_rights"], c["pages_touched"]) == (1, 1, 1, 1)


def test_a_page_is_free_when_the_last_has_given_it_back() -> None:
    rows = [
        (Op.WRITE, PAGE), (Op.FORK, 5), (Op.UNMAP, PAGE), (Op.WRITE, PAGE + 4096), (Op.SWITCH, 5), (Op.READ, PAGE),
        (Op.MUNMAP, PAGE), (Op.WRITE, PAGE + 8192),
    ]  # fmt: skip
    came, _ = run(rows)
    assert came[1] != came[0]
    assert came[2:] == [came[0], came[0]]


def test_a_collapse_when_it_is_asked_for() -> None:
    few = [(Op.WRITE, PAGE + 4096 * i) for i in (0, 7)]
    came, c = run([*few, (Op.COLLAPSE, PAGE + 4096 * 100), (Op.READ, PAGE + 4096 * 7), (Op.READ, PAGE + 4096 * 100)])
    assert c["collapses"] == 1
    assert came[3] - came[2] == 4096 * 93
    for before in ([(Op.PROTECT, PAGE)], [(Op.FORK, 3)], [(Op.COLLAPSE, PAGE)], [(Op.MUNMAP, PAGE | 511)]):
        _, c = run([*few, *before, (Op.COLLAPSE, PAGE)])
        assert c["collapses"] == (before[0][0] == Op.COLLAPSE)
    assert run([(Op.COLLAPSE, PAGE)])[1]["collapses"] == 0


def test_a_premapped_run_has_none_of_them() -> None:
    rows = [
        (Op.WRITE, PAGE),
        (Op.FORK, 5),
        (Op.PROTECT, PAGE),
        (Op.MUNMAP, PAGE),
        (Op.COLLAPSE, PAGE),
        (Op.WRITE, PAGE),
    ]
    came, c = run(rows, premapped=True)
    assert came[0] == came[1]
    assert (c["forks"], c["munmaps"], c["guest_faults"]) == (0, 0, 0)


def test_what_cannot_be_is_refused() -> None:
    for rows, message in (
        ([(Op.FORK, 0)], "a FORK to process 0, which is there already"),
        ([(Op.FORK, 7), (Op.FORK, 7)], "process 7, which is there"), ([(Op.FORK, 1 << 20)], "1048576"),
        ([(Op.MUNMAP, 1 << 47)], "0x800000000000"), ([(Op.PROTECT, (1 << 47) - 4096 | 1)], "0x800000000fff"),
        ([(Op.COLLAPSE, 1 << 63)], "0x8000000000000000"),
    ):  # fmt: skip
        with pytest.raises(TraceError, match=message):
            run(list(rows))
    run([(Op.MUNMAP, (1 << 47) - 4096), (Op.UNPROTECT, (1 << 47) - 8192 | 1)])
