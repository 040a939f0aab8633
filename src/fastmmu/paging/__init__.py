"""Translation, facts only: the guest's walk, the EPT walk, both; one address, arrays, whole address spaces.

    memory       `PhysicalMemory`: one buffer, or segments of a file; the bounds check and the reads of the kernels
    segments     memory with holes: what of it there is, pages that are put in place
    state        `GuestState`, `Eptp`, `Npt`: registers checked once, and what walks derive from them
    guest, ept   the two walks, headers that callers specialize (no EPT, no caches, no record of steps)
    npt          a header: AMD's nested paging, as far as it is no data of the EPT's walk
    walk_caches  what walks find in the paging-structure caches and leave there
    quick_walk   a header: the walk of a miss as most are, at once; else the one at length
    denied       a header: most walks from memory that are denied like the one with caches before, at once
    unasked      what may be cached of an address that nobody asked for
    walk         one address: a query, an access, with or without caches, its path; the PDPTE registers
    agile        the walk of agile paging: shadow tables, and from an entry that switches on the guest's own;
                 agile_walks: those of a processor
    batch        many addresses of one space; `translate` is that for arrays and threads
    leaves       every mapping of a space; `leaf_rows` is its state and its rows, `leaf_pages` the hot loops;
                 `mappings` is that as record arrays, `mapping_parts` in several threads
    contiguity   how many of them follow each other: histograms of runs
    huge_pages   a header: where the host is asked for huge pages; `walked_tables` finds tables that are worth one
    hash_table   a header: open addressing over structs
    nonroot      what needs no exit: #VE and EPTP switching by VMFUNC; `nonroot_py` is that for Python

`fastmmu._walk`, at the top of the package, is the door for Python: one address with every memory reference.

Imports `arch` and `tlb`. A walk reports what it met and sets A/D flags; what that means is decided above.

To add a paging mode: its masks in `state` (a mode is data for `guest`, no walker of its own), `reference/paging/`,
and the mode in tests/paging's products. To add a condition of an access: a named bit in
tests/support/access_product.py first.
"""

from __future__ import annotations
