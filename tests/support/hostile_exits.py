"""Calls of a VMM in Python with hostile values, from inside a VM exit: every public method of what a handler gets.

    python -m tests.support.hostile_exits --rounds 200 --seed 1

Each round is a forked child with a machine of its own. At an exit it makes calls, most of them with values that lead
deep: small numbers, gfns of slots and outside of them, walks that are out of date. Then the guest runs on. What a child
is about to call stands in shared memory, so that a crash names it; one that takes longer than `LIMIT` seconds hangs.
"""

from __future__ import annotations

import argparse
import faulthandler
import mmap
import os
import random
import resource
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

import fastmmu
from fastmmu import Action, Config, Exit, FastmmuError, GuestState, Host, Machine
from fastmmu.cpu.apic_py import InterprocessorInterrupt
from fastmmu.exits import ExitReason
from fastmmu.kvm.faults_port import Faults
from fastmmu.kvm.lapic_port import Lapic
from fastmmu.kvm.log_port import DirtyLog
from fastmmu.kvm.port import VirtualCpu, VirtualMachine
from fastmmu.kvm.registers_port import Registers
from fastmmu.kvm.roots_port import Roots
from fastmmu.mmu.port import Mmu
from fastmmu.mmu.tables_port import Slot, TableWalk
from fastmmu.vmx.fields import Field
from tests.support.hostile_values import OwnError, everything, name_of
from tests.support.public_calls import signature

LIMIT = 20
EXITS, CALLS = 12, 120
CLASSES = (VirtualMachine, VirtualCpu, Mmu, Faults, Roots, Registers, Lapic, TableWalk, Slot, DirtyLog)
VALUES = [value for _, value in everything()]
WORDS = ("pf_fixed", "ept_build", "fast", "pf_taken", "spurious", "root", "tables", "away", "bus", "ipis")
TABLES = {
    "long": {0x1000: 0x2063, 0x2000: 0x3063, 0x3000: 0x4063}
    | {0x3000 + 8 * i: i << 21 | 0xE3 for i in range(1, 64)}
    | {0x4000 + 8 * i: i << 12 | 0x63 for i in range(512)},
    "pae": {0x1000 + 8 * i: 0x3001 for i in range(4)} | {0x3000 + 8 * i: i << 21 | 0xE3 for i in range(32)},
    "none": {},
}
"""Guest-physical address to entry: linear addresses are guest-physical ones."""
MACHINES: list[dict[str, Any]] = [
    {"mmu": "ept"},
    {"mmu": "ept", "kvm": "6.1", "vpid": True, "pml": True, "tpr": "apicv"},
    {"mmu": "ept", "kvm": "6.1", "tdp_mmu": True, "tpr": "trap"},
    {"mmu": "ept", "unrestricted_guest": False, "tpr": "flexpriority"},
    {"mmu": "shadow", "tpr": "patch"},
    {"mmu": "shadow", "kvm": "6.1", "vpid": True, "tpr": "flexpriority"},
    {"mmu": "shadow", "kvm": "6.1", "guest": "pae"},
    {"mmu": "shadow", "guest": "none"},
]


def public(kind: type) -> list[str]:
    return [name for name in dir(kind) if not name.startswith("_")]


METHODS = [(kind, name) for kind in CLASSES for name in public(kind)]
FLAGS = {"write", "can_unsync", "prefetch", "direct", "accessed", "dirty", "host_writable", "restorable"}
FLAGS |= {"vm86", "on", "logical", "unsync"}
FEW: dict[str, list[Any]] = {
    "level": [1, 2],
    "rights": [1, 3, 5, 7, 4, 2],
    "memory_type": [None, 0, 6, 8, 0x70],
    "access": [1, 3, 5, 7, 127],
    "msr": [0x1B, 0x6E0, 0x802, 0x808, 0x80B, 0x830, 0x83F],
    "offset": [0, 0x80, 0xB0, 0xD0, 0x300, 0x310, 0x320, 0x380, 0xFFF],
}
OF_CLASS = {"walk": TableWalk, "old": Registers, "registers": Registers, "arch": Registers}


class Asking(fastmmu.Kvm):
    """Does something at the next CPUID, and when its logs are asked for."""

    task: Callable[[Any, Any], None] | None = None

    def default(self, vcpu: Any, exit: Exit) -> int:
        if exit.reason == ExitReason.CPUID and self.task is not None:
            self.task(vcpu, None)
            return Action.EMULATED
        return super().default(vcpu, exit)

    def get_dirty_log(self, log: Any, dirty: Any) -> Any:
        if self.task is not None and self.vm.vcpus:
            self.task(self.vm.vcpus[0], log)
        return super().get_dirty_log(log, dirty)


class Caller:
    """Makes calls, and keeps what they give."""

    def __init__(self, chance: random.Random, say: Callable[[str], None]) -> None:
        self.chance, self.say = chance, say
        self.found: dict[type, list[Any]] = {kind: [] for kind in CLASSES}
        self.outcomes: Counter[str] = Counter()
        self.called: Counter[str] = Counter()
        self.wrong: list[str] = []

    def keep(self, value: Any) -> None:
        if type(value) in self.found:
            kept = self.found[type(value)]
            if len(kept) < 40:
                kept.append(value)
            else:
                kept[self.chance.randrange(40)] = value

    def number(self) -> Any:
        chance = self.chance
        return chance.choice(
            [
                chance.randrange(16),
                chance.randrange(512),
                chance.randrange(1 << 14),
                chance.randrange(1 << 14) << 12,
                1 << chance.randrange(66),
                (1 << chance.randrange(66)) - 1,
                chance.getrandbits(64),
                chance.randrange(1 << 14) << 12 | chance.randrange(4096),
                -1,
                0,
                int(chance.choice(list(Field))),
            ]
        )

    def value(self) -> Any:
        chance = self.chance
        which = chance.randrange(20)
        if which < 11:
            return self.number()
        if which < 13:
            return chance.choice([True, False, None])
        if which < 16:
            kind = chance.choice(CLASSES)
            return chance.choice(self.found[kind]) if self.found[kind] else None
        if which == 16:
            return [self.number() for _ in range(chance.choice([0, 3, 4, 4, 4, 5]))]
        if which == 17:
            return chance.choice(WORDS)
        if which == 18:
            return np.ones(chance.choice([0, 16, 512, 16384]), chance.choice(["bool", "u1", "u8"]))
        return chance.choice(VALUES)

    def meant(self, parameter: str) -> Any:
        """Something of the kind that the parameter takes."""
        chance = self.chance
        if parameter in OF_CLASS and self.found[OF_CLASS[parameter]]:
            return chance.choice(self.found[OF_CLASS[parameter]])
        if parameter in ("name", "reason"):
            return chance.choice(WORDS) if parameter == "name" or chance.random() < 0.3 else chance.randrange(64)
        if parameter in ("gfns", "pages") and chance.random() < 0.7:
            first = chance.choice([0, 3, 512, chance.randrange(1 << 14), 1 << 20, (1 << 36) - 8])
            return chance.choice([first, [first, 1], range(first, first + 40), np.arange(first, first + 9)])
        if parameter in ("gfns", "words", "values"):
            return [chance.choice([None, 0, 1, 3, self.number()]) for _ in range(4)]
        if parameter == "ipi":
            return InterprocessorInterrupt(*(chance.randrange(8) for _ in range(5)), chance.random() < 0.5)
        if parameter == "entry":
            walks = self.found[TableWalk]
            return chance.choice([0, self.number(), *([chance.choice(walks).entry] if walks else [])])
        if parameter == "field":
            return int(chance.choice(list(Field)))
        if parameter == "pages":
            return np.ones(16384, np.bool_)
        if parameter in FLAGS:
            return chance.random() < 0.5
        if parameter in FEW:
            return chance.choice(FEW[parameter])
        return self.number()

    def call(self) -> None:
        kind, name = self.chance.choice(METHODS)
        if not self.found[kind]:
            return
        target = self.chance.choice(self.found[kind])
        member = getattr(kind, name)
        attribute = hasattr(member, "__set__")
        required, optional = ((), ("value",)) if attribute else signature(member) or ((), ())
        given: dict[str, Any] = {}
        try:
            for parameter in (*required, *(each for each in optional if self.chance.random() < 0.5)):
                hint = "arch" if name == "arch" else name if attribute else parameter
                given[parameter] = self.meant(hint) if self.chance.random() < 0.8 else self.value()
        except FastmmuError:  # of a walk that is out of date
            return
        words = f"{kind.__name__}.{name}({', '.join(f'{k}={name_of(v)}' for k, v in given.items())})"
        self.say(words)
        try:
            if not attribute:
                result = getattr(target, name)(**given)
            elif given:
                setattr(target, name, given["value"])
                result = None
            else:
                result = getattr(target, name)
            self.called[f"{kind.__name__}.{name}"] += 1
            for each in result if isinstance(result, (tuple, list)) else (result,):
                self.keep(each)
        except FastmmuError as error:
            self.outcomes[type(error).__name__] += 1
            str(error)
        except OwnError:
            self.outcomes["OwnError"] += 1
        except AttributeError:  # read-only
            self.outcomes["AttributeError"] += 1
        except BaseException as error:
            self.wrong.append(f"{words} raised {type(error).__name__}: {error}")

    def came(self, error: FastmmuError) -> None:
        """What stopped the guest."""
        self.outcomes[f"outside {type(error).__name__}"] += 1
        if "without a name" in str(error):
            self.wrong.append(str(error))

    def inside(self, vcpu: Any, log: Any) -> None:
        vm = vcpu.vm
        for each in (vm, *vm.vcpus, vm.mmu, vm.mmu.walk(0), vm.mmu.find(0x5000), vm.mmu.slot(0), log, vcpu.arch):
            self.keep(each)
        for each in vm.vcpus:
            for part in (each.faults, each.roots, each.apic):
                self.keep(part)
        for _ in range(CALLS):
            self.call()


def machines(fields: dict[str, Any], chance: random.Random) -> tuple[Any, list[Machine]]:
    fields = dict(fields)
    guest = fields.pop("guest", "long")
    state = {
        "long": GuestState(cr3=0x1000, cr4=0xA0, maxphyaddr=46),
        "pae": GuestState(cr0=0x80000011, cr3=0x1000, cr4=0x20, efer=0, maxphyaddr=46),
        "none": GuestState(cr0=0x11, cr3=0, cr4=0, efer=0, maxphyaddr=46),
    }[guest]
    config = Config(memory="64M", vmm=Asking, **fields)
    if guest == "long" and chance.random() < 0.3:
        host = Host([(config, 2)], cpus=2)
        return host, []
    machine = Machine(config, guest_kernel=False, state=state)
    for address, entry in TABLES[guest].items():
        machine.guest_memory.u64[address >> 3] = entry
    return machine, [machine]


def the_guest_goes_on(machine: Machine, caller: Caller, chance: random.Random) -> None:
    for _ in range(20):
        la = chance.choice([0xFEE00080, 0x5000, chance.randrange(1 << 9) << 12, chance.randrange(1 << 14) << 12])
        calls: list[tuple[Any, ...]] = [
            (machine.load, la),
            (machine.store, la, chance.getrandbits(20)),
            (machine.invlpg, la),
            (machine.mov_cr3, 0x1000),
            (machine.vmm.counters,),
            (machine.vmm.stats,),
        ]
        call, *given = chance.choice(calls)
        try:
            call(*given)
        except FastmmuError as error:
            caller.came(error)


def a_machine(machine: Machine, caller: Caller, chance: random.Random) -> None:
    vmm = machine.vmm
    for each in range(EXITS):
        caller.say(f"exit {each}")
        try:
            choice = chance.randrange(8)
            if choice == 0:
                vmm.start_dirty_log(0)
            elif choice == 1:
                vmm.dirty_log(0)
            elif choice == 2:
                vmm.stop_dirty_log(0)
            else:
                machine.exit_instruction(10)
        except FastmmuError as error:
            caller.came(error)
        caller.say("the guest goes on")
        the_guest_goes_on(machine, caller, chance)


def a_host(host: Host, caller: Caller, chance: random.Random) -> None:
    events = np.zeros(50, np.uint8), np.full(50, 8, np.uint8)
    events[0][::7] = fastmmu.Op.EXIT
    addresses = np.where(events[0] == fastmmu.Op.EXIT, 10, np.arange(50) << 12).astype(np.uint64)
    for each in range(EXITS):
        caller.say(f"turn {each}")
        try:
            cpu = chance.randrange(2)
            host.place(each & 1, cpu)
            host.run(each & 1, cpu, *events, addresses)
        except FastmmuError as error:
            caller.came(error)
    host.totals()


def one_round(seed: int, say: Callable[[str], None]) -> Caller:
    chance = random.Random(seed)
    caller = Caller(chance, say)
    Asking.task = staticmethod(caller.inside)  # type: ignore[assignment]
    made, alone = machines(MACHINES[seed % len(MACHINES)], chance)
    if alone:
        a_machine(alone[0], caller, chance)
    else:
        a_host(made, caller, chance)
    say("the end")
    return caller


def run(rounds: range, one: Callable[..., Caller] = one_round) -> tuple[list[str], Counter[str], Counter[str]]:
    """What went wrong; errors by class; calls that were done, by name."""
    shared = mmap.mmap(-1, 4096)
    wrong: list[str] = []
    outcomes: Counter[str] = Counter()
    called: Counter[str] = Counter()

    def say(words: str) -> None:
        told = words.encode("utf-8", "backslashreplace")[:4000]
        shared[: len(told) + 1] = told + b"\0"

    for seed in rounds:
        reader, writer = os.pipe()
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(reader)
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                faulthandler.disable()
                signal.alarm(LIMIT)
                caller = one(seed, say)
                lines = [f"!{each}" for each in caller.wrong]
                lines += [f"={name} {n}" for name, n in caller.called.items()]
                lines += [f"?{name}\t{n}" for name, n in caller.outcomes.items()]
                with os.fdopen(writer, "w", encoding="utf-8", errors="backslashreplace") as out:
                    out.write("\n".join(" ".join(line.split("\n")) for line in lines))
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        os.close(writer)
        with os.fdopen(reader, encoding="utf-8") as lines_of:
            for line in lines_of.read().splitlines():
                if line[:1] == "!":
                    wrong.append(f"seed {seed}: {line[1:]}")
                elif line[:1] == "=":
                    name, n = line[1:].split(" ")
                    called[name] += int(n)
                elif line[:1] == "?":
                    name, n = line[1:].split("\t")
                    outcomes[name] += int(n)
        _, status = os.waitpid(pid, 0)
        if status:
            number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            how = "hangs" if number == signal.SIGALRM else f"ends the process: signal {number}, status {status}"
            at = shared[:].split(b"\0")[0].decode("utf-8", "replace")
            wrong.append(f"seed {seed}: {at} {how}")
    shared.close()
    return wrong, outcomes, called


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    wrong, outcomes, called = run(range(chosen.seed, chosen.seed + chosen.rounds))
    print("\n".join(wrong))
    print(dict(outcomes))
    print("never done:", [f"{k.__name__}.{n}" for k, n in METHODS if f"{k.__name__}.{n}" not in called])
    print(f"{sum(called.values())} calls done, {len(wrong)} went wrong")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
