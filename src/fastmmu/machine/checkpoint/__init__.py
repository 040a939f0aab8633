"""Checkpoints: a machine as a file, so that a run goes on where it stopped, bit for bit (docs/checkpoints.md).

    archive                 what is written and read: words by name, arrays, large memory of which little is used
    board                   a whole machine, by its parts:
    caches                  the data caches of a CPU
    extensions              those of the TLB
    tlb, mmu, slots         the TLB; the VMM's tables; memory slots and what the host has behind them
    cpu, interrupts, guest  a vCPU; its local APIC; the guest kernel, the detector, the log of exits
    frames                  which frames of guest memory are free
    container, machines     the file: NumPy's .npz with a text; a machine with its configuration
    runs                    `Checkpoint`: a run of a trace that keeps how far it came, and goes on from there

Each struct of a kernel is described once, for writing and reading. A comment in its function says which struct it is
and which members are not written because the new machine has them, or because they follow from others;
tests/machine/test_checkpoint_members.py reads struct and description, so that no member is forgotten.

What is read may be anything: every number is checked before it is used as an index, every list before it is followed.

To add a member to a struct: a line in its function here, or its name in the comment there.
"""

from __future__ import annotations
