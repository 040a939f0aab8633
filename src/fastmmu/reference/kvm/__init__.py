"""A guest on KVM's MMU, step by step (kvm_policy.md).

kvm       `Kvm`: instructions of the guest, VM exits, operations of the host
vm        policy, slots, roots: what the rules are written in
tables    table pages by (gfn, role), their entries
map       the leaf for a page; direct mappings
shadow    what a #PF was, and the shadow entry that answers it
sync      shadow pages out of sync, writes to guest tables, INVLPG
log       dirty logs, pages swapped out and aged
memory    the tables as they lie in host memory
stats     flushes owed, and KVM's statistics
view      the tables, to look at
agile     which tables of a guest agile paging walks nested; agile_kvm: `AgileKvm`, a guest under it (agile.md §4)
modes     a guest that changes its paging mode
vpid      the allocator of VPIDs
asid      ASIDs of AMD, and what is cached under them
"""

from __future__ import annotations

from .agile import Rules
from .agile_kvm import AgileKvm
from .kvm import Came, Kvm, Log, Mapping, Policy, Slot, Tables

__all__ = ["AgileKvm", "Came", "Kvm", "Log", "Mapping", "Policy", "Rules", "Slot", "Tables"]
