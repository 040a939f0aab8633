"""Garbage in the tables that the VMM owns: written past it, through ``machine.memory``; then the guest goes on.

    python -m tests.support.hostile_tables --rounds 200 --seed 1

What the guest's accesses give is garbage, too; what must hold is that each call is done or is one of our errors, in
both VMMs. Each round is a forked child, as of `hostile_exits`.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from typing import Any

import fastmmu
from fastmmu import Config, FastmmuError, GuestState, Machine, MemorySlot
from tests.support.hostile_exits import MACHINES, TABLES, Asking, Caller, run

FRAME = 0x000F_FFFF_FFFF_F000
SLOT = 0x1_0000_0000
STEPS, WRITES = 60, 8
HOSTS: list[dict[str, Any]] = [
    {},
    {"host_pages": "2m"},
    {"host_memory": "16M", "host_reclaim": "clock"},
    {"host_memory": "16M", "host_reclaim": "lru"},
    {"host_pages": "untouched"},
]


def machine_of(seed: int, chance: random.Random) -> Machine:
    fields = dict(MACHINES[seed // 2 % len(MACHINES)])
    guest = fields.pop("guest", "long")
    state = {
        "long": GuestState(cr3=0x1000, cr4=0xA0, maxphyaddr=46),
        "pae": GuestState(cr0=0x80000011, cr3=0x1000, cr4=0x20, efer=0, maxphyaddr=46),
        "none": GuestState(cr0=0x11, cr3=0, cr4=0, efer=0, maxphyaddr=46),
    }[guest]
    config = Config(memory="64M", vmm=("kernel", Asking)[seed % 2], **fields, **chance.choice(HOSTS))
    machine = Machine(config, guest_kernel=False, state=state, slots=(MemorySlot(SLOT, 1 << 21, host="untouched"),))
    for address, entry in TABLES[guest].items():
        machine.guest_memory.u64[address >> 3] = entry
    return machine


class Spoiler:
    """Writes garbage to the tables of a machine, and makes calls of it."""

    def __init__(self, machine: Machine, caller: Caller, chance: random.Random) -> None:
        self.machine, self.caller, self.chance = machine, caller, chance
        self.old: list[int] = []

    def garbage(self, words: Any, tables: list[int]) -> int:
        """Of all kinds: noise, what stood in a table, an entry that leads to a table, to a page, out of memory."""
        chance = self.chance
        entry = chance.choice(self.old) if self.old else 0
        present = 1 << 11 | chance.choice([0x7, 0x37, 0x27, 0x3, 0x1, 0x0]) | chance.choice([0, 1 << 7])
        present |= chance.choice([0, 3 << 57, 3 << 9, 1 << 57, 1 << 63, 0x60, 0x300])
        return chance.choice(
            [
                lambda: chance.getrandbits(64),
                lambda: 0,
                lambda: entry,
                lambda: entry ^ 1 << chance.randrange(64),
                lambda: entry & ~FRAME | chance.choice(tables),
                lambda: entry & ~FRAME | chance.getrandbits(52) & FRAME,
                lambda: present | chance.choice(tables),
                lambda: present | chance.getrandbits(chance.choice([27, 30, 40, 52])) & FRAME,
                lambda: chance.getrandbits(64) & ~(1 << 11),
            ]
        )()

    def spoil(self) -> None:
        tables = [hpa for hpa, _ in self.machine.vmm.reverse_maps()[1]]
        words = self.machine.memory.u64
        for _ in range(self.chance.randrange(WRITES) if tables else 0):
            table = self.chance.choice(tables) >> 3
            filled = words[table : table + 512].nonzero()[0].tolist()
            at = self.chance.choice(filled) if filled and self.chance.random() < 0.8 else self.chance.randrange(512)
            self.old.append(int(words[table + at]))
            words[table + at] = self.garbage(words, tables)

    def address(self) -> int:
        chance = self.chance
        return chance.choice([0x5000, chance.randrange(512) << 12, chance.randrange(1 << 14) << 12, SLOT])

    def calls(self) -> list[tuple[Any, ...]]:
        m, chance, page = self.machine, self.chance, self.chance.randrange(1 << 14)
        slot = chance.randrange(2)
        page = page % 512 if slot else page
        return [
            (m.load, self.address()),
            (m.load, self.address()),
            (m.store, self.address(), chance.getrandbits(20)),
            (m.store, self.address(), chance.getrandbits(20)),
            (m.store, 0x3000 + 8 * chance.randrange(512), chance.getrandbits(20) << 12 | 0x63),
            (m.invlpg, self.address()),
            (m.mov_cr3, 0x1000),
            (m.exit_instruction, 10),
            (m.vmm.start_dirty_log, slot),
            (m.vmm.dirty_log, slot),
            (m.vmm.stop_dirty_log, slot),
            (m.vmm.young, slot, page),
            (m.vmm.swap_out, slot, page),
            (m.vmm.merge, slot, [page, page ^ 1]),
            (m.vmm.touch, slot, page, 2),
            (m.vmm.recover_nx, 1),
            (m.vmm.guest_caching,),
            (m.vmm.counters,),
            (m.vmm.reverse_maps,),
            (m.vmm.nested_tables,),
            (self.range, slot, page),
            *([(m.vmm.delete_slot, 1)] if chance.random() < 0.1 else []),
        ]

    def range(self, slot: int, page: int) -> None:
        self.machine.vmm.invalidate_range_start(slot, page, 3)
        self.machine.vmm.invalidate_range_end(slot)

    def step(self) -> None:
        self.spoil()
        for _ in range(4):
            call, *given = self.chance.choice(self.calls())
            name = getattr(call, "__name__", str(call))
            self.caller.say(f"{name}{tuple(given)}")
            try:
                call(*given)
                self.caller.called[name] += 1
            except FastmmuError as error:
                self.caller.came(error)

    def inside(self, vcpu: Any, log: Any) -> None:
        """Walks of a VMM in Python."""
        for address in (0, self.address(), self.address()):
            for walk in (vcpu.vm.mmu.walk(address), vcpu.vm.mmu.find(address)):
                while walk is not None:
                    for name in ("entry", "present", "leaf", "mmio_gfn", "split", "gfn", "access", "unsync"):
                        getattr(walk, name)
                    if self.chance.random() < 0.2:
                        walk.set(0)
                    if not walk.down():
                        break


def one_round(seed: int, say: Callable[[str], None]) -> Caller:
    chance = random.Random(seed)
    caller = Caller(chance, say)
    try:
        machine = machine_of(seed, chance)
    except fastmmu.ConfigError:  # that the host's pages are not of this machine
        return caller
    spoiler = Spoiler(machine, caller, chance)
    Asking.task = staticmethod(spoiler.inside)  # type: ignore[assignment]
    for _ in range(STEPS):
        spoiler.step()
    say("the end")
    del machine, spoiler
    return caller


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    wrong, outcomes, called = run(range(chosen.seed, chosen.seed + chosen.rounds), one_round)
    print("\n".join(wrong))
    print(dict(outcomes), dict(called))
    print(f"{sum(called.values())} calls done, {len(wrong)} rounds went wrong")
    return bool(wrong)


__all__ = ["one_round"]

if __name__ == "__main__":
    raise SystemExit(main())
