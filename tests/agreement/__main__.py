"""`python -m tests.agreement`: every recording of a guest that is described here, in every configuration.

One line a phase: configuration, phase, exits of real KVM by reason, ours, the verdict, the dirty logs. Mechanisms are
those of the machine; no number is known here. Fails where a phase differs.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from .apic import ApicGuest
from .compare import Verdict, compare, description
from .guest import Guest
from .matrix import combinations, compared
from .recorded import data_directories, recordings, sample_directory


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.agreement", description=__doc__)
    parser.add_argument(
        "--data",
        help="folders of recordings, a list as PATH is one (default: FASTMMU_KVM_EXITS, else both of ../shared)",
    )
    parser.add_argument("--guest", default="", help="only this guest")
    parser.add_argument("--only", default="", help="configurations whose name contains this")
    parser.add_argument("--different", action="store_true", help="print only phases that differ")
    parser.add_argument(
        "--spec", action="store_true", help="the executable specification of KVM's MMU (guest A; minutes)"
    )
    parser.add_argument("--vmm", choices=("kernel", "python"), default="kernel", help="who is KVM; default: kernel")
    parser.add_argument(
        "--matrix",
        action="store_true",
        help="no recordings: the machine against the specification in every combination of parameters (an hour)",
    )
    options = parser.parse_args(argv)
    if options.matrix:
        return matrix(options.guest or "A", options.only)
    folders = [Path(part) for part in options.data.split(os.pathsep)] if options.data else data_directories()
    found = recordings(*folders)
    if not found:
        named = ", ".join(map(str, folders))
        if options.data:
            print(f"no recording in {named}", file=sys.stderr)
            return 2
        print(f"no recordings in {named}: the sample in the project is used; FASTMMU_KVM_EXITS names another")
        found = recordings(sample_directory())
    verdicts: list[Verdict] = []
    failed = 0
    for recording in found:
        if options.guest not in ("", recording.guest):
            continue
        guest = description(recording.guest, recording.path.parent)
        if options.spec and guest and issubclass(getattr(guest, "Guest", Guest), ApicGuest):
            print(f"{recording.path.name}: guest {recording.guest} is one of the APIC; left out")
            continue
        if guest is None:
            name = f"guest_{recording.guest.lower()}.py"
            print(f"{recording.path.name}: guest {recording.guest} has no description; left out. Write {name}")
            continue
        for name in recording.results:
            if options.only not in name:
                continue
            print(f"{recording.path.name} {name}")
            try:
                done = list(compare(recording, name, guest, options.spec, options.vmm))
            except ValueError as error:
                print(f"    {error}: all its phases count as different")
                failed += len(recording.results[name])
                continue
            for verdict in done:
                if not (options.different and verdict.equal):
                    print(line(verdict))
            verdicts += done
    missing = {text: 0 for verdict in verdicts for text in verdict.not_modelled}
    for verdict in verdicts:
        for text in verdict.not_modelled:
            missing[text] += 1
    for text, phases in missing.items():
        print(f"not modelled: {text} ({phases} phases, not compared)")
    verdicts = [verdict for verdict in verdicts if not verdict.not_modelled]
    equal = sum(verdict.equal for verdict in verdicts)
    pages = sum(verdict.pages_equal for verdict in verdicts)
    compared = sum(verdict.compared for verdict in verdicts)
    statistics = compared - sum(len(verdict.statistics) for verdict in verdicts), compared
    left_out = "not compared: irq_exits, which are the host's timer; req_event of guests with an APIC"
    print(f"pages mapped and unsync at the end of a phase: {pages} of {len(verdicts)} equal")
    print(f"statistics of KVM's own: {statistics[0]} of {statistics[1]} equal; {left_out}")
    print(f"kvm-agreement: {equal} of {len(verdicts) + failed} phases equal")
    return 0 if verdicts and equal == len(verdicts) + failed else 1


def matrix(letter: str, only: str) -> int:
    guest = description(letter)
    assert guest is not None
    chosen = [each for each in combinations(letter) if only in f"{each[0]}_{each[1]}"]
    phases = equal = 0
    for vendor, name in sorted(chosen, key=lambda each: ("noapicv" in each[1], "novpid" in each[1])):
        different = []
        for number, text in compared(vendor, name, guest):
            phases += 1
            if text:
                different.append(f"    {number:>3} DIFFERENT  {text}")
        equal += not different
        print(f"{vendor} {name}{'' if different else ': equal'}", *different, sep="\n", flush=True)
    print(f"matrix: {equal} of {len(chosen)} combinations equal in every phase ({phases} phases)")
    return 0 if chosen and equal == len(chosen) else 1


def line(verdict: Verdict) -> str:
    if verdict.not_modelled:
        return f"    {verdict.phase:>3} not modelled: {', '.join(verdict.not_modelled)}"
    text = f"    {verdict.phase:>3} {'equal    ' if verdict.equal else 'DIFFERENT'}  KVM {exits(verdict.real)}"
    text += f"  ours {exits(verdict.ours)}"
    if verdict.real_dirty is not None or verdict.our_dirty is not None:
        text += f"  dirty: KVM {log(verdict.real_dirty)} ours {log(verdict.our_dirty)}"
    if verdict.difference:
        text += f"  {verdict.difference}"
    if verdict.statistics:
        text += f"  statistics of KVM and ours: {verdict.statistics}"
    if not verdict.interrupts_equal:
        text += "  interrupts differ"
    if verdict.details:
        text += f"  details of KVM and ours: {verdict.details}"
    if not verdict.parity:
        text += "  not the same with a policy in Python"
    if not verdict.pages_equal:
        text += f"  (pages: KVM {verdict.real_pages} ours {verdict.our_pages})"
    return text


def exits(counted: dict[str, int]) -> str:
    return " ".join(f"{name}={count}" for name, count in sorted(counted.items())) or "none"


def log(dirty: tuple[int, list[list[int]]] | None) -> str:
    if dirty is None:
        return "not fetched"
    count, runs = dirty
    shown = " ".join(f"{first}+{n}" for first, n in runs[:5])
    return f"{count} [{shown}{' ...' if len(runs) > 5 else ''}]"


if __name__ == "__main__":
    raise SystemExit(main())
