"""What a processor has cached, and what ends it (tlb.md).

entries         entries, and the caches that hold them
tlb             lookups and fills
optimal         Belady's replacement, which no policy can go below
policies        replacement that is neither LRU nor tree-PLRU
siblings        what the hyperthreads of a core share, and what one loses to another
lru             miss-ratio curves: one TLB of one size, under true LRU
stack_distance  the order of last use, of a trace in one piece and in parts
invalidations   `Tlb`: what each event invalidates
extensions      what is asked between a miss of both levels and the walk: clusters, ranges, a TLB in memory
prefetchers     the same: buffers that prefetchers fill
mixed           the same: arrays that hold pages of all sizes
extended        the TLB with those
"""

from __future__ import annotations
