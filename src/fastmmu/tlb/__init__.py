"""Cached translations of one physical CPU: entries and contexts, lookups and fills, what invalidates them.

    replacement  sets of ways: which one makes room; true LRU, tree-PLRU
    policy       replacement by functions behind pointers, which other packages may implement, too
    policies     those of this package: random, SRRIP
    chirp        another one: dead entries are predicted from the code that runs
    entries      entries, the contexts that stand for (VPID, PCID, EPT root); what a hyperthread lost to another
    lookup       lookups and fills of both levels, paging-structure caches, guest-physical mappings
    held         the lookups of both levels that a loop asks as long as they find something
    peek         lookups that change nothing, until all are known
    making       one is made: its arrays, arrays that grow
    invalidate   one function for each event that invalidates (tlb.md §3-§5)
    arrays       arrays given as `64/4`
    geometry     all arrays of a CPU: presets, and what is put in their place
    which        which entries an invalidation is about
    extension    what is asked between a miss of both levels and the walk: the interface, and its tags
    clustered    of it: entries for neighbouring pages
    ranges       base, limit and offset
    pom          a TLB in memory
    prefetch     prefetchers and their buffer
    mixed        arrays for pages of all sizes: skewed, hash-rehash, MIX
    extensions   all of them as text, as `clustered:8`
    attach       a geometry's, made for a TLB
    siblings     the hyperthreads of a core, and what they share
    readout      what a TLB holds and has counted, as Python objects
    tlb          `TLB`, all that for Python

Imports `threads` and `arch`. It knows no page tables: walks hand it what they found.

To add a preset: a row in `geometry`. To add a replacement policy: the functions of a `Replacer` (policy.pxd) in
`policies.pyx`, which `policy_of` knows by a word of `arrays.REPLACEMENTS`; the same in `reference/tlb/policies.py`,
which tests/tlb/test_equivalence.py sets beside it; the direction of its paper in tests/tlb/test_replacement.py. One
of another package derives from `ReplacementPolicy` and calls `register_policy` (examples/policy). To add an
extension: a kernel like `pom`, its words in `extensions` and `attach`, a class in `reference/tlb/extensions.py`,
which tests/tlb/test_extensions.py sets beside it (docs/tlb-extensions.md). To add an event that invalidates: a
function in `invalidate`, its row in `reference/tlb/invalidations.py`, and a test in tests/tlb of what dies and what
survives.
"""

from __future__ import annotations
