"""Take over one VM exit: how much host memory does a guest take, and what would large pages in the host change?

python examples/policy.py [TRACE]
"""

from __future__ import annotations

import sys

import numpy as np

import fastmmu


class Footprint(fastmmu.Policy):
    """Notes every EPT violation and lets KVM's handler do the work; all other exits stay in the kernel layer."""

    def __init__(self) -> None:
        self.pages: list[int] = []

    def on_ept_violation(self, machine: fastmmu.Machine, exit: fastmmu.Exit) -> fastmmu.Action:
        self.pages.append(exit.guest_physical >> 12)
        return machine.default()


def main() -> None:
    if len(sys.argv) > 1:
        trace: fastmmu.Trace | np.ndarray = fastmmu.read_trace(sys.argv[1])
    else:  # reads of 2000 pages in random order
        trace = 0x7000_0000_0000 + 4096 * np.random.default_rng(0).integers(0, 2000, 20_000).astype(np.uint64)
    config = fastmmu.Config(mmu="ept", vpid=True, host_pages="4k")

    small, large = Footprint(), Footprint()
    fastmmu.simulate(trace, config, policy=small)
    fastmmu.simulate(trace, config.replace(host_pages="2m"), policy=large)

    for what, policy, size in (("4 KB", small, 4), ("2 MB", large, 2048)):
        exits = len(policy.pages)
        print(f"host pages of {what}: {exits:6} EPT violations, {exits * size:8} KB of host memory")
    regions = {page >> 9 for page in small.pages}
    print(f"the {len(small.pages)} small pages lie in {len(regions)} regions of 2 MB")


if __name__ == "__main__":
    main()
