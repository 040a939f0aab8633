"""KVM from version to version: what each brought, and what that comes to. Figures of docs/kvm-versions.md.

python examples/kvm_versions.py [SYSTEM_TRACE.rec]
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

from fastmmu.kvm_versions import KVM_VERSIONS, KvmRules, kvm_rule, kvm_rules
from fastmmu.study.replay.run import replay_schemes
from fastmmu.trace.system import SystemTrace

SAMPLE = Path(__file__).parents[1] / "tests" / "data" / "systems" / "mm.rec.xz"
SCHEMES = ("shadow, Linux 6.1", "EPT, older MMU", "EPT", "EPT, no A/D flags", "EPT, 2 MB pages", "EPT, logged")


def changes() -> list[str]:
    """A line for each rule that a version has and the one before it has not, or no longer."""
    names = list(KVM_VERSIONS)
    lines = []
    for before, after in itertools.pairwise(names):
        old, new = kvm_rules(before), kvm_rules(after)
        for name in KvmRules._fields:
            if getattr(old, name) != getattr(new, name):
                rule = kvm_rule(name)
                version = rule.since if getattr(new, name) else rule.until or ()
                sign = "+" if getattr(new, name) else "-"
                lines.append(f"    {after:>5} {sign} {name} ({'.'.join(map(str, version))}): {rule.what}")
    return lines


def costs(path: Path) -> list[str]:
    """VM exits of a system trace, replayed in each scheme by each version."""
    versions = list(KVM_VERSIONS)
    found = {kvm: list(replay_schemes(SystemTrace(path), SCHEMES, kvm=kvm)) for kvm in versions}
    lines = [f"    {'':18} " + " ".join(f"{kvm:>9}" for kvm in versions)]
    for row, scheme in enumerate(SCHEMES):
        exits = [found[kvm][row].counters["vm_exits"] for kvm in versions]
        lines.append(f"    {scheme.partition(', Linux')[0]:18} " + " ".join(f"{n:>9,}" for n in exits))
    return lines


def main() -> None:
    print("\n".join(changes()))
    print()
    print("\n".join(costs(Path(sys.argv[1]) if len(sys.argv) > 1 else SAMPLE)))


if __name__ == "__main__":
    main()
