"""Translation: guest paging, EPT and AMD's nested page tables, nested walks, memory types, enumeration.

State ─┐                 ┌─ guest    formats and permissions of guest entries
Ept  ──┼── walk / load_pdptes ┤
Memory ┘        │        ├─ ept ── spp   one guest-physical translation, A/D flags, log
                │        └─ npt          the same by AMD's tables
                └── Outcome: what it ended in, its steps, its changes to memory

state, memory, run, outcome   what walks are written in
guest, ept, spp, npt, walk    the walks
agile                         the walk of agile paging: shadow tables above, the guest's own below
walk_caches                   what a walk finds in the caches and leaves there
memtype                       the effective memory type
mappings, place               every mapping of an address space; one address, rights left aside
nonroot                       #VE and VMFUNC
"""

from __future__ import annotations
