"""What a run costs in processor cycles: `costs.toml` and the sum over the counters."""

from __future__ import annotations

import difflib
import hashlib
import math
import os
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from typing import Annotated, Any

import msgspec

from fastmmu._arguments import shown
from fastmmu._checked import checked
from fastmmu.counters import COUNTERS
from fastmmu.errors import ConfigError
from fastmmu.exits import ExitReason
from fastmmu.machine.cache_result import CacheResult
from fastmmu.machine.config import Config
from fastmmu.machine.wholly import read_whole

__all__ = ["DEFAULT_COSTS", "CostModel", "cycles", "exits_by_class"]

Cycles = Annotated[float, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
DEFAULT_COSTS = "costs.toml"
SHARES = ("walk.guest.", "walk.ept.", "extension.reference.")

CLASSES = {
    "exception_nmi": ("pf_fixed", "pf_guest", "pf_emulate", "dirty", "mmio", "pf_spurious", "pf_retry"),
    "ept_violation": ("ept_build", "dirty", "pf_fast", "mmio", "pf_emulate", "ept_spurious", "pf_retry"),
    "ept_misconfig": ("mmio",),
    "npf": ("ept_build", "dirty", "pf_fast", "mmio", "pf_emulate", "ept_spurious", "pf_retry"),
}
"""Exit reasons that the VMM tells apart further: reason -> class counters (kvm_policy.md §2.1, §3.2)."""


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Access(_Part, frozen=True, kw_only=True):
    trace: Cycles
    kernel: Cycles


class Tlb(_Part, frozen=True, kw_only=True):
    stlb_hit: Cycles


class Memory(_Part, frozen=True, kw_only=True):
    l1d: Cycles
    l2: Cycles
    l3: Cycles
    dram: Cycles


class Shares(_Part, frozen=True, kw_only=True):
    l1d: Share
    l2: Share
    l3: Share
    dram: Share

    def mean(self, memory: Memory) -> float:
        return self.l1d * memory.l1d + self.l2 * memory.l2 + self.l3 * memory.l3 + self.dram * memory.dram


class WalkCosts(_Part, frozen=True, kw_only=True):
    guest: Shares
    ept: Shares
    ad_write: Cycles
    overlap: Share


class Guest(_Part, frozen=True, kw_only=True):
    page_fault: Cycles
    context_switch: Cycles
    exit_instruction: Cycles
    invlpg: Cycles
    interrupt: Cycles
    cr3_flush: Cycles
    shootdown: Cycles
    shootdown_ipi: Cycles
    shootdown_preempted: Cycles
    shootdown_mark: Cycles
    invlpgb: Cycles
    tlbsync: Cycles


class Extension(_Part, frozen=True, kw_only=True):
    read: Cycles
    reference: Shares


class Exit(_Part, frozen=True, kw_only=True):
    generation: str
    vmreads: Cycles
    vmwrites: Cycles
    path: Cycles


class Flush(_Part, frozen=True, kw_only=True):
    invvpid: Cycles
    invept: Cycles
    asid: Cycles
    invlpga: Cycles
    remote: Cycles
    remote_ipi: Cycles


class HostWork(_Part, frozen=True, kw_only=True):
    swap_in: Cycles
    swap_out: Cycles
    swap_write: Cycles
    ask: Cycles
    refill: Cycles


class Generation(_Part, frozen=True, kw_only=True):
    round_trip: Cycles
    vmread: Cycles
    vmwrite: Cycles


class CostModel(_Part, frozen=True, kw_only=True):
    """The parameters of `costs.toml`, by its sections; each is documented there. All times are in cycles.

    ``CostModel.load()`` gives the defaults, ``CostModel.load(path)`` the defaults changed by a file.

    Threads: immutable; share it.
    """

    access: Access
    tlb: Tlb
    memory: Memory
    walk: WalkCosts
    extension: Extension
    guest: Guest
    exit: Exit
    dispatch: dict[str, Cycles]
    flush: Flush
    host: HostWork
    generation: dict[str, Generation]

    @classmethod
    @checked
    def load(cls, path: str | os.PathLike[str] | None = None, *, generation: str | None = None) -> CostModel:
        """The model of a TOML file laid over the defaults; None: the defaults.

        :param generation: processor whose VM exits to take, in place of the file's ``exit.generation``.
        :raises ConfigError: no TOML, an unknown key, a value out of range; names file, key and remedy.
        :raises OSError: the file cannot be read.
        """
        defaults = tomllib.loads((files("fastmmu.machine") / DEFAULT_COSTS).read_text(encoding="utf-8"))
        name = DEFAULT_COSTS
        values = defaults
        if path is not None:
            name = os.fspath(path)
            values = _overlay(defaults, _read(name), name)
        if generation is not None:
            values = {**values, "exit": {**values["exit"], "generation": generation}}
        _check_numbers(values, name)
        try:
            processors = {key: _processor(value, key) for key, value in values["generation"].items()}
            model = msgspec.convert({**values, "generation": processors}, cls)
        except msgspec.ValidationError as error:
            what, _, key = str(error).partition(" - at `$.")
            key = f"{key.rstrip('`')}: " if key else ""
            raise ConfigError(
                f"{name}: {key}{what}; every key stands with its unit in fastmmu's {DEFAULT_COSTS}"
            ) from error
        return _checked(model, name)

    @property
    def identity(self) -> str:
        """Processor and a hash of all values in force, as "skylake 0123456789ab": equal where all costs are."""
        used = self.generation[self.exit.generation]
        values = msgspec.json.encode([msgspec.structs.replace(self, generation={}), used], order="deterministic")
        return f"{self.exit.generation} {hashlib.blake2b(values, digest_size=6).hexdigest()}"

    def transition(self) -> float:
        """Cycles of any exit before the VMM looks at its reason: round trip, VMREADs and VMWRITEs, common path."""
        processor = self.generation[self.exit.generation]
        fields = self.exit.vmreads * processor.vmread + self.exit.vmwrites * processor.vmwrite
        return processor.round_trip + fields + self.exit.path

    @checked
    def price(self, key: str) -> float:
        """Cycles by SECTION.KEY; of "walk.guest", "walk.ept", "extension.reference": of one reference, the mean over
        its places."""
        return self._price(key)

    def _price(self, key: str) -> float:
        section, _, name = key.partition(".")
        value = getattr(getattr(self, section, None), name, None)
        if not isinstance(value, (Shares, int, float)):
            raise ConfigError(f"no price {shown(key)}; give SECTION.KEY of {DEFAULT_COSTS}, such as memory.l2")
        return value.mean(self.memory) if isinstance(value, Shares) else float(value)

    @checked
    def exit_cost(self, kind: str) -> float:
        """Cycles of one exit of a kind: a class such as "ept_build" or an exit reason such as "cpuid"."""
        return self.transition() + self.dispatch.get(kind, self.dispatch["other"])


def _read(name: str) -> dict[str, Any]:
    try:
        return tomllib.loads(read_whole(name).decode("utf-8").replace("\r\n", "\n"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name}: no TOML: {error}; copy fastmmu's {DEFAULT_COSTS} and change that") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: no text in UTF-8 ({error.reason} at byte {error.start})") from error


def _check_numbers(values: Mapping[str, Any], name: str, at: str = "") -> None:
    for key, value in values.items():
        where = f"{at}{key}"
        if isinstance(value, dict):
            _check_numbers(value, name, f"{where}.")
        elif where != "exit.generation":
            top = 1 if at in SHARES or where == "walk.overlap" else math.inf
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0 <= value <= top or not math.isfinite(value):
                what = "a share, 0..1" if top == 1 else "a number >= 0"
                raise ConfigError(f"{name}: {where} = {value!r}; give {what}")


def _processor(value: Any, key: str) -> Generation:
    try:
        return msgspec.convert(value, Generation)
    except msgspec.ValidationError as error:
        raise msgspec.ValidationError(f"generation.{key}: {error}") from error


def _overlay(base: Mapping[str, Any], over: Mapping[str, Any], name: str, at: str = "") -> dict[str, Any]:
    """`over` on `base`, by section; a key that `base` has not is an error, but for processors and exit reasons."""
    merged = dict(base)
    for key, value in over.items():
        where = f"{at}{key}"
        if at == "generation.":
            merged[key] = {**base.get(key, {}), **value} if isinstance(value, dict) else value
        elif at == "dispatch." and key.upper() in ExitReason.__members__:
            merged[key] = value
        elif key not in base:
            close = difflib.get_close_matches(key, base, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(base)}"
            raise ConfigError(f"{name}: unknown key {where}; {hint}")
        elif isinstance(base[key], dict):
            if not isinstance(value, dict):
                raise ConfigError(f"{name}: {where} is a section, not {value!r}; write [{where}] and its keys below it")
            merged[key] = _overlay(base[key], value, name, f"{where}.")
        else:
            merged[key] = value
    return merged


def _checked(model: CostModel, name: str) -> CostModel:
    if model.exit.generation not in model.generation:
        raise ConfigError(
            f"{name}: exit.generation: no processor {model.exit.generation!r}; there are {', '.join(model.generation)}"
        )
    walk, reference = model.walk, model.extension.reference
    for side, shares in (("walk.guest", walk.guest), ("walk.ept", walk.ept), ("extension.reference", reference)):
        total = shares.l1d + shares.l2 + shares.l3 + shares.dram
        if abs(total - 1) > 1e-6:
            raise ConfigError(f"{name}: {side}: the shares l1d, l2, l3, dram sum to {total:g}; make them sum to 1")
    return model


@checked
def exits_by_class(counters: Mapping[str, Any]) -> dict[str, int]:
    """VM exits told apart as finely as the counters allow: class or exit reason -> number, none of them 0.

    A reason with class counters (:data:`CLASSES`) is split into them; what they leave over stands under the reason.
    The numbers sum to those of ``exits_by_reason``.
    """
    found: dict[str, int] = {}
    left = {name: int(counters.get(name, 0)) for classes in CLASSES.values() for name in classes}
    for reason, number in counters.get("exits_by_reason", {}).items():
        rest = int(number)
        for name in CLASSES.get(reason, ()):
            part = min(left[name], rest)
            left[name] -= part
            rest -= part
            if part:
                found[name] = found.get(name, 0) + part
        if rest:
            found[reason] = found.get(reason, 0) + rest
    return found


@checked
def cycles(
    counters: Mapping[str, Any], config: Config, costs: CostModel, caches: CacheResult | None = None
) -> dict[str, float]:
    """Modelled cycles of a run by cause; their sum is its cycles. Causes that cost nothing are left out.

    Causes: ``accesses``, ``kernel``, ``stlb``, ``guest_walk``, ``ept_walk``, ``ad_writes``, ``extensions``,
    ``guest_faults``, ``context_switches``, ``invlpgs``, ``interrupts``, ``shootdowns``, ``exit_instructions``,
    ``flushes``, ``remote_flushes``, with data caches ``data`` and ``vmm_memory``, of a host short of memory
    ``swap_ins``, ``swap_outs``, ``ageing``, of agile paging ``refills``, and ``exit:KIND`` for each kind of
    :func:`exits_by_class`.

    With data caches ``guest_walk`` and ``ept_walk`` are the latencies of their references, flags that are set among
    them; ``kernel`` has in addition what its references took beyond the first level; the same is ``data`` of the trace
    and ``vmm_memory`` of the VMM; of ``extensions`` the references that accesses wait for are latencies. All other
    prices stay (docs/caches-in-runs.md).

    :param counters: those of :class:`~fastmmu.machine.result.Result`; a missing one counts as 0.
    :param caches: what data caches came to, of the same part of the run; None: there are none.
    """
    found = _priced(counters, costs, "")
    if caches is not None:
        found["guest_walk"] = caches.cycles_of("guest")
        found["ept_walk"] = caches.cycles_of("ept")
        modelled = int(counters.get("extension_refs", 0)) * costs.price("extension.reference")
        found["extensions"] = found.get("extensions", 0.0) - modelled + caches.cycles_of("extension")
        found["kernel"] = found.get("kernel", 0.0) + caches.beyond_l1("kernel")
        found["data"] = caches.beyond_l1("read", "write", "fetch")
        found["vmm_memory"] = caches.beyond_l1("vmm")
    if config.mmu == "native":
        found |= _priced(counters, costs, "native")
    else:
        for kind, number in exits_by_class(counters).items():
            found[f"exit:{kind}"] = number * costs.exit_cost(kind)
        found |= _priced(counters, costs, "vmm")
    return {cause: float(value) for cause, value in found.items() if value}


def _prices(only: str) -> list[tuple[str, str, list[str]]]:
    """Cause, price, and the counters (:data:`fastmmu.counters.COUNTERS`) that have it, of one kind of run."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in COUNTERS:
        if row.cost is not None and row.cost.only == only:
            found.setdefault((row.cost.cause, row.cost.price), []).append(row.name)
    return [(cause, price, names) for (cause, price), names in found.items()]


_PRICES = {only: _prices(only) for only in ("", "native", "vmm")}


def _priced(counters: Mapping[str, Any], costs: CostModel, only: str) -> dict[str, float]:
    """Cycles by cause of the counters with a price, of one kind of run."""
    found: dict[str, float] = {}
    for cause, price, names in _PRICES[only]:
        number = sum([int(counters.get(name, 0)) for name in names])
        if number:
            found[cause] = found.get(cause, 0.0) + number * costs._price(price)
    return found
