"""What a VMM in Python may call, and a caller of it with hostile values: see `hostile_exits`, which runs it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

import fastmmu
from fastmmu import Action, Exit, FastmmuError
from fastmmu.cpu.apic_py import InterprocessorInterrupt
from fastmmu.exits import ExitReason
from fastmmu.kvm.faults_port import Faults
from fastmmu.kvm.lapic_port import Lapic
from fastmmu.kvm.log_port import DirtyLog
from fastmmu.kvm.port import VirtualCpu, VirtualMachine
from fastmmu.kvm.registers_port import Registers
from fastmmu.kvm.roots_port import Roots
from fastmmu.kvm.vpid_port import VpidBitmap
from fastmmu.mmu.port import Mmu
from fastmmu.mmu.tables_port import Slot, TableWalk
from fastmmu.vmx.fields import Field
from tests.support.hostile_values import OwnError, everything, name_of
from tests.support.public_calls import signature

CALLS = 120
CLASSES = (VirtualMachine, VirtualCpu, VpidBitmap, Mmu, Faults, Roots, Registers, Lapic, TableWalk, Slot, DirtyLog)
VALUES = [value for _, value in everything()]
WORDS = ("pf_fixed", "ept_build", "fast", "pf_taken", "spurious", "root", "tables", "away", "bus", "ipis")


def public(kind: type) -> list[str]:
    return [name for name in dir(kind) if not name.startswith("_")]


METHODS = [(kind, name) for kind in CLASSES for name in public(kind)]
FLAGS = {"write", "can_unsync", "prefetch", "direct", "accessed", "dirty", "host_writable", "restorable"}
FLAGS |= {"vm86", "on", "logical", "unsync"}
FEW: dict[str, list[Any]] = {
    "vpid": [0, 1, 2, 3, 4, 5, 65535, 65536],
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


HOOKS = (
    "allocate_vpid", "create_lapic", "vcpu_reset", "load_mmu", "vcpu_put", "vcpu_load", "vcpu_enter_guest", "vcpu_exit",
    "flush_pml_buffer", "update_cpu_dirty_logging", "flush_remote_tlbs", "zap_all", "free_vpid",
)  # fmt: skip
"""What the host and user space call."""
LIKELY = {
    "vcpu_enter_guest": [(VirtualCpu, name) for name in ("arrived", "enter", "leave", "mode", "placing", "requests",
                                                         "route_notifications")],
    "allocate_vpid": [(VpidBitmap, name) for name in ("set_bit", "clear_bit", "test_bit", "find_first_zero_bit")],
    "create_lapic": [(Lapic, name) for name in ("put", "reset_timer", "enable_posting", "base")],
}  # fmt: skip
LIKELY |= {"vcpu_exit": LIKELY["vcpu_enter_guest"], "free_vpid": LIKELY["allocate_vpid"]}
"""What each is most about."""


def hooked(name: str) -> Callable[..., Any]:
    def method(self: Any, vcpu: Any) -> Any:
        how = self.hook(name, vcpu) if self.hook is not None else "after"
        if how == "instead":
            return None
        result = getattr(fastmmu.Kvm, name)(self, vcpu)
        if how == "around":
            self.hook(name, vcpu)
        return result

    return method


Asking.hook = None  # type: ignore[attr-defined]
for _name in HOOKS:
    setattr(Asking, _name, hooked(_name))


class Caller:
    """Makes calls, and keeps what they give."""

    def __init__(self, chance: random.Random, say: Callable[[str], None]) -> None:
        self.chance, self.say = chance, say
        self.found: dict[type, list[Any]] = {kind: [] for kind in CLASSES}
        self.outcomes: Counter[str] = Counter()
        self.called: Counter[str] = Counter()
        self.hooks: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.bare = True  # no guest kernel, whose fault it could be

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

    def call(self, methods: list[tuple[type, str]] = METHODS) -> None:
        kind, name = self.chance.choice(methods)
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
        if "without a name" in str(error) or ("no page answers" in str(error) and self.bare):
            self.wrong.append(f"{type(error).__name__}: {error}")

    def inside(self, vcpu: Any, log: Any) -> None:
        vm = vcpu.vm
        tables = vm.mmu, vm.mmu.walk(0), vm.mmu.find(0x5000), vm.mmu.slot(0)
        for each in (vm, *vm.vcpus, vm.vpids, *tables, log, vcpu.arch):
            self.keep(each)
        for each in vm.vcpus:
            for part in (each.faults, each.roots, each.apic):
                self.keep(part)
        for _ in range(CALLS):
            self.call()

    def asked(self, name: str, vcpu: Any) -> str:
        """A few calls where the host asks the VMM for something; in the place of which they stand, or around it."""
        if self.chance.random() < 0.7:
            return "after"
        self.say(f"in {name}")
        for each in (vcpu.vm, vcpu, vcpu.vm.vpids, vcpu.apic, vcpu.roots, vcpu.faults):
            self.keep(each)
        self.hooks[name] += 1
        for _ in range(self.chance.randrange(1, 9)):
            self.call(LIKELY[name] if name in LIKELY and self.chance.random() < 0.6 else METHODS)
        return self.chance.choice(["before", "around", "around", "instead"])
