"""A build with FASTMMU_CHECKS=1 ends at a change of an entry that breaks an invariant, and says which."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import fastmmu

# Entries are spoilt behind the back of the MMU, whose next change finds it out.
GUEST = """
from fastmmu import Config, MemorySlot
from tests.support.flat_guest import PAGE, flat

machine = flat(
    Config(memory="64M", mmu="ept", kvm="6.1", host_pages="untouched"), MemorySlot(0x1000_0000, 1 << 20)
)
machine.store(PAGE, 1)
pages, _ = machine.vmm.reverse_maps()
table, index = next(places[0] for (hpa, _), places in pages.items() if machine.memory.u64[hpa >> 3] == 1)
words, at = machine.memory.u64, (table >> 3) + index
entry = int(words[at])
"""


@pytest.mark.skipif(os.environ.get("FASTMMU_CHECKS") != "1", reason="of the build that `make check-invariants` makes")
@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        ("words[at] = entry & ~(1 << 58)", "W implies MAY_WRITE"),
        ("words[at] = entry & ~(1 << 57)", "MAY_WRITE implies HOST_WRITE"),
        ("words[at] = entry ^ 1 << 12", "a leaf of a direct table page leads to the memory of its gfn"),
    ],
)
def test_a_broken_invariant_ends_the_process(spoil: str, rule: str) -> None:
    ended = run_spoilt(spoil)
    assert ended.returncode == -signal.SIGABRT, ended.stderr
    assert f"not kept: {rule} (entry " in ended.stderr
    assert "rmap.c" in ended.stderr


@pytest.mark.skipif(os.environ.get("FASTMMU_CHECKS") != "1", reason="of the build that `make check-invariants` makes")
def test_an_entry_that_memory_lost_is_unlinked_all_the_same() -> None:
    ended = run_spoilt("words[at] = 0; machine.vmm.delete_slot(1)")
    assert (ended.returncode, ended.stderr) == (0, "")


def run_spoilt(spoil: str) -> subprocess.CompletedProcess[str]:
    """The guest, with an entry spoilt, then aged and swapped out."""
    assert "checks" in Path(fastmmu.__file__).parts
    program = f"{GUEST}\n{spoil}\nmachine.vmm.young(0, PAGE >> 12, clear=True)\nmachine.vmm.swap_out(0, PAGE >> 12)"
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False
    )
