"""The dirty log of a VMM in Python: what it protects, and what a rule of one's own may make of it."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmmu import Config, Kvm, Machine, Op, PolicyError, StateError

EXAMPLE = Path(__file__).parents[2] / "examples" / "policies.py"
SCHEMES: list[dict[str, Any]] = [
    {"mmu": "ept"},
    {"mmu": "ept", "kvm": "6.1", "pml": True},
    {"mmu": "ept", "kvm": "6.1", "pages": "thp", "eager_page_split": True},
    {"mmu": "ept", "kvm": "6.1", "tdp_mmu": False, "host_pages": "2m"},
    {"mmu": "shadow", "kvm": "6.1"},
]


def accesses(rng: np.random.Generator, n: int = 2000) -> tuple[Any, Any, Any]:
    op = rng.choice([Op.READ, Op.WRITE], n, p=[0.8, 0.2]).astype(np.uint8)
    pages = rng.zipf(1.3, n).astype(np.uint64) % np.uint64(1500)
    return op, np.full(n, 8, np.uint8), (np.uint64(1 << 40) + pages * np.uint64(4096)).astype(np.uint64)


@pytest.mark.parametrize("fields", SCHEMES, ids=str)
@pytest.mark.parametrize("manual", [False, True])
def test_both_log_the_same(fields: dict[str, Any], manual: bool) -> None:
    kernel, python = (Machine(Config(memory="64M", vmm=vmm, **fields)) for vmm in ("kernel", "python"))
    rng = np.random.default_rng(3)
    for step in range(8):
        batch, found = accesses(rng), []
        for m in (kernel, python):
            m.run(*batch)
            if step == 1:
                m.vmm.start_dirty_log(0, manual=manual, initially_set=manual)
            elif step > 1:
                found.append(m.vmm.dirty_log(0))
                if manual:
                    m.vmm.clear_dirty_log(0, 0, 4096)
        assert not found or np.array_equal(*found)
        assert python.counters() == kernel.counters()
        assert python.vmm.counters() == kernel.vmm.counters()
    assert found[0].any()


@pytest.mark.parametrize("pml", [False, True])
def test_pages_seen_hot_lose_no_write(pml: bool) -> None:
    """What was written since the log was read last is among what it gives, and cold pages take no violation."""
    hot = runpy.run_path(str(EXAMPLE))["HotPages"]
    m = Machine(Config(memory="64M", mmu="ept", kvm="6.1", pml=pml, vmm=hot))
    rng = np.random.default_rng(4)
    m.run(*accesses(rng, 5000))
    m.vmm.start_dirty_log(0)
    for _ in range(10):
        op, size, addr = accesses(rng)
        gpas = np.empty(len(op), np.uint64)
        m.run(op, size, addr, out=gpas)
        written = np.unique(gpas[op == Op.WRITE] >> np.uint64(12))
        assert len(written) > 50
        assert m.vmm.dirty_log(0)[written].all()


def test_what_is_no_log() -> None:
    class Wrong(Kvm):
        made: Any = None
        log: Any = None

        def get_dirty_log(self, log: Any, dirty: Any) -> Any:
            Wrong.log = log
            for pages in (None, [], dirty[1:], dirty.astype(np.uint8), 3, "x"):
                with pytest.raises(StateError, match="give an array of 16384 bools"):
                    log.protect(pages)
            return Wrong.made

    m = Machine(Config(memory="64M", mmu="ept", vmm=Wrong))
    m.vmm.start_dirty_log(0)
    for made in (None, [True], np.zeros(3, np.bool_), np.zeros(16384)):
        Wrong.made = made
        with pytest.raises(PolicyError, match="return an array of 16384 bools"):
            m.vmm.dirty_log(0)
    Wrong.made = np.zeros(16384, np.bool_)
    assert not m.vmm.dirty_log(0).any()
    for call in (lambda: Wrong.log.pages, Wrong.log.protect_slot, Wrong.log.clear_young):
        with pytest.raises(PolicyError, match="does not stand still"):
            call()


def test_a_log_that_raises() -> None:
    class Broken(Kvm):
        def start_dirty_log(self, log: Any) -> None:
            raise ArithmeticError("mine")

    m = Machine(Config(memory="64M", mmu="ept", vmm=Broken))
    with pytest.raises(ArithmeticError, match="mine"):
        m.vmm.start_dirty_log(0)
    m.run(*accesses(np.random.default_rng(5)))
