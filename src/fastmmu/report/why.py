"""Which causes cost what: the few that make a scheme slower than native, and what VPID and EPT change."""

from __future__ import annotations

from collections.abc import Sequence

from fastmmu.machine.costs import exits_by_class
from fastmmu.machine.result import Result
from fastmmu.report.rows import baseline, several_versions
from fastmmu.report.table import number, paint
from fastmmu.report.words import cause_name

__all__ = ["why"]

_SMALL = 0.02  # of a run's cycles per access: a cause below that is not named
_MOST = 4


def why(results: Sequence[Result], *, width: int = 120, colour: bool = False) -> list[str]:
    """Lines that say where the modelled cycles go."""
    several = len({result.config.pages for result in results}) > 1
    names = [f"{result.config.name}{f' {result.config.pages}' if several else ''}" for result in results]
    if several_versions(results):
        named = zip(names, results, strict=True)
        names = [
            name if result.config.mmu == "native" else f"{name}, KVM {result.config.kvm}" for name, result in named
        ]
    column = max(map(len, names), default=0)
    digits = max((len(f"{result.cycles_per_access:.2f}") for result in results), default=0)
    lines = [paint("Where the cycles of an access go", "bold", colour)]
    for name, result in zip(names, results, strict=True):
        native = baseline(result, results)
        causes = _causes(result, None if native is result else native)
        start = "" if native is None or native is result else f"native {native.cycles_per_access:.2f}"
        lines += _fill(f"{name:{column}}  {f'{result.cycles_per_access:.2f}':>{digits}} = ", start, causes, width)
    return [*lines, *_observations(results, names)]


def _causes(result: Result, native: Result | None) -> list[str]:
    """The largest parts of the cycles per access, or of what they are beyond native's, as signed terms."""
    accesses = result.counters["accesses"] or 1
    parts = {cause: value / accesses for cause, value in result.cycles_by.items()}
    if native is not None:
        other = native.counters["accesses"] or 1
        for cause, value in native.cycles_by.items():
            parts[cause] = parts.get(cause, 0.0) - value / other
    enough = max(_SMALL * result.cycles_per_access, 0.005)
    named = sorted((c for c in parts if abs(parts[c]) >= enough), key=lambda c: -abs(parts[c]))[:_MOST]
    exits = exits_by_class(result.counters)
    terms = []
    for cause in named:
        many = exits.get(cause.removeprefix("exit:"), 0) if cause.startswith("exit:") else 0
        count = f" ({number(many)})" if many else ""
        sign = "+" if parts[cause] >= 0 else "−"
        terms.append(f"{sign} {abs(parts[cause]):.2f} {cause_name(cause, mmu=result.config.mmu)}{count}")
    rest = sum(parts.values()) - sum(parts[cause] for cause in named)
    if abs(rest) >= 0.005:
        terms.append(f"{'+' if rest >= 0 else '−'} {abs(rest):.2f} other")
    return terms


def _fill(head: str, start: str, terms: Sequence[str], width: int) -> list[str]:
    """The terms behind one another, wrapped at `width` under the first; below the head where there is little room."""
    if len(head) > width // 3 and len(head) + max(map(len, [start, *terms])) > width:
        first, head = head.rstrip(" ="), "    "
        return [first, *_fill(head, start, terms, max(width, 12))]
    lines = [head + start]
    for term in terms:
        if lines[-1] == head:
            lines[-1] += term.removeprefix("+ ")
        elif len(lines[-1]) + 1 + len(term) <= width:
            lines[-1] += f" {term}"
        else:
            lines.append(" " * len(head) + term)
    return lines


def _observations(results: Sequence[Result], names: Sequence[str]) -> list[str]:
    lines = []
    for name, result in zip(names, results, strict=True):
        config, n = result.config, result.counters
        if config.mmu == "ept" and not config.vpid and n["walks"]:
            refs = n["guest_walk_refs"] + n["ept_walk_refs"]
            native = baseline(result, results)
            there = f", natively {_per_walk(native):.1f}" if native is not None and native.counters["walks"] else ""
            lines.append(f"{name}: a walk takes {refs / n['walks']:.1f} references{there}")
        if config.mmu == "agile" and n["walks"]:
            found = [n[f"walks_nested_{levels}"] for levels in range(6)]
            each = [f"{levels}: {many / n['walks']:.1%}" for levels, many in enumerate(found) if many]
            lines.append(f"{name}: walks by levels of the guest's own tables: {', '.join(each)}")
        if config.vpid and config.mmu != "native":
            untagged, of = config.replace(vpid=False), result.origin.run_of
            without = [r for r in results if r.config == untagged and r.origin.run_of == of]
            if without and without[0].counters["vm_exits"]:
                more = without[0].counters["tlb_misses"] - n["tlb_misses"]
                exits = without[0].counters["vm_exits"]
                lines.append(f"{name}: VPID saves {number(more)} TLB misses, {more / exits:.1f} for each VM exit")
    return lines


def _per_walk(result: Result) -> float:
    n = result.counters
    return float(n["guest_walk_refs"] + n["ept_walk_refs"]) / float(n["walks"])
