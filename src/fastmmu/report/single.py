"""One run with all its counters."""

from __future__ import annotations

from fastmmu.machine.costs import exits_by_class
from fastmmu.machine.result import Result
from fastmmu.report.table import paint
from fastmmu.report.words import cause_name, reason_title, settings

__all__ = ["single"]


def single(result: Result, *, colour: bool = False) -> str:
    """Counters, exits by reason, and modelled cycles by cause, as text."""
    counters = result.counters
    head = f"{result.trace or 'trace'}, {result.config.name}, pages {result.config.pages}; {settings(result)}"
    lines = [paint(head, "bold", colour)]
    if not result.complete:
        lines.append("interrupted: figures of the part that was simulated")
    lines += ["", *_block("counters", {k: v for k, v in counters.items() if not isinstance(v, dict)}, colour)]
    reasons = {f"{k} ({reason_title(k)})": n for k, n in counters["exits_by_reason"].items() if n}
    if reasons:
        lines += ["", *_block("VM exits by reason", reasons, colour)]
    kinds = {cause_name(f"exit:{kind}", mmu=result.config.mmu): n for kind, n in exits_by_class(counters).items()}
    if kinds:
        lines += ["", *_block("VM exits by what the VMM did", kinds, colour)]
    lines += ["", *_cycles(result, colour)]
    lines += [
        "",
        f"simulated in {result.seconds:.2f} s: {result.accesses_per_second / 1e6:.1f} million accesses a second",
    ]
    return "\n".join([*lines, *result.notes])


def _block(title: str, numbers: dict[str, int], colour: bool) -> list[str]:
    width = max(len(name) for name in numbers)
    return [paint(title, "bold", colour), *(f"  {name:{width}}  {n:>20,}" for name, n in numbers.items())]


def _cycles(result: Result, colour: bool) -> list[str]:
    accesses = result.counters["accesses"] or 1
    names = {cause: cause_name(cause, mmu=result.config.mmu) for cause in result.cycles_by}
    width = max([len("all"), *map(len, names.values())])
    lines = [paint(f"{'modelled cycles':{width + 2}}  {'cycles':>20}  {'an access':>10}  {'share':>6}", "bold", colour)]
    for cause, value in sorted(result.cycles_by.items(), key=lambda item: -item[1]):
        share = value / result.cycles if result.cycles else 0.0
        lines.append(f"  {names[cause]:{width}}  {value:>20,.0f}  {value / accesses:>10.3f}  {share:>6.1%}")
    lines.append(f"  {'all':{width}}  {result.cycles:>20,.0f}  {result.cycles_per_access:>10.3f}")
    return lines
