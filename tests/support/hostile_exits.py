"""Calls of a VMM in Python with hostile values, from inside a VM exit, and from inside what the host asks of it: every
public method of what a handler gets.

    python -m tests.support.hostile_exits --rounds 200 --seed 1

Each round is a forked child with a machine of its own. At an exit it makes calls, and a few wherever the host calls the
VMM (a vCPU comes, is put on a CPU, leaves it, ends), before or after what it should do, or in its place; most of them
with values that lead deep: small numbers, gfns of slots and outside of them, walks that are out of date. Then the guest
runs on. What a child is about to call stands in shared memory, so that a crash names it; one that takes longer than
`LIMIT` seconds hangs.
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
from fastmmu import Config, FastmmuError, GuestState, Host, Machine
from tests.support.hostile_ports import METHODS, Asking, Caller

__all__ = ["MACHINES", "METHODS", "TABLES", "Asking", "Caller", "run"]

LIMIT = 20
EXITS, TURNS = 12, 30
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
        return (Host([(config, 2)], cpus=2), config), []
    machine = Machine(config, guest_kernel=False, state=state)
    for address, entry in TABLES[guest].items():
        machine.guest_memory.u64[address >> 3] = entry
    return machine, [machine]


def the_guest_goes_on(machine: Machine, caller: Caller, chance: random.Random) -> None:
    for _ in range(20):
        la = chance.choice([0xFEE00080, 0x5000, chance.randrange(1 << 9) << 12, chance.randrange(1 << 14) << 12])
        calls: list[tuple[Callable[..., Any], *tuple[Any, ...]]] = [
            (machine.load, la),
            (machine.store, la, chance.getrandbits(20)),
            (machine.invlpg, la),
            (machine.mov_cr3, 0x1000),
            (lambda: machine.vmm.counters(),),
            (lambda: machine.vmm.stats(),),
        ]
        call, *given = chance.choice(calls)
        try:
            call(*given)
        except FastmmuError as error:
            caller.came(error)


def a_machine(machine: Machine, caller: Caller, chance: random.Random) -> None:
    for each in range(EXITS):
        caller.say(f"exit {each}")
        try:
            vmm = machine.vmm
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


def a_host(host: Host, config: Config, caller: Caller, chance: random.Random) -> None:
    events = np.zeros(50, np.uint8), np.full(50, 8, np.uint8)
    events[0][::7] = fastmmu.Op.EXIT
    addresses = np.where(events[0] == fastmmu.Op.EXIT, 10, np.arange(50) << 12).astype(np.uint64)
    for each in range(TURNS):
        caller.say(f"turn {each}")
        try:
            what, cpu = chance.randrange(8), chance.randrange(2)
            if what == 0 and len(host.machines) < 3:
                host.add(config, chance.randrange(1, 3))
            living = [(machine, vcpu) for machine in host.machines for vcpu in host.vcpus_of(machine)]
            if what == 1 and len(living) > 1:
                host.remove(chance.choice(living)[chance.randrange(2)])
                continue
            if what == 2 or not living:
                host.add_vcpu(chance.choice(host.machines or [host.add(config)]))
                continue
            machine, vcpu = chance.choice(living)
            if what == 3:
                machine.vmm.start_dirty_log(0)
                machine.vmm.dirty_log(0)
            host.place(vcpu, cpu)
            host.run(vcpu, cpu, *events, addresses)
        except FastmmuError as error:
            caller.came(error)
    host.totals()


def one_round(seed: int, say: Callable[[str], None]) -> Caller:
    chance = random.Random(seed)
    caller = Caller(chance, say)
    Asking.task = staticmethod(caller.inside)  # type: ignore[assignment]
    Asking.hook = staticmethod(caller.asked)  # type: ignore[attr-defined]
    for _ in range(3):
        say("it is made")
        try:
            made, alone = machines(MACHINES[seed % len(MACHINES)], chance)
            break
        except FastmmuError as error:  # the VMM did not do what it was asked for
            caller.came(error)
    else:
        Asking.hook = None  # type: ignore[attr-defined]
        made, alone = machines(MACHINES[seed % len(MACHINES)], chance)
        Asking.hook = staticmethod(caller.asked)  # type: ignore[attr-defined]
    if alone:
        a_machine(alone[0], caller, chance)
    else:
        caller.bare = False
        a_host(*made, caller, chance)
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
