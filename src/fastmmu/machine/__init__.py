"""A run: memory, processor, VMM and guest put together from a `Config`, driven, counted and priced.

    config, slots, devices, policy   what users say: the scheme, memory slots, MMIO devices, exits taken over
    assembly                         all parts of one machine, put together; layout: where they lie in host memory
    instructions, control_instructions, apic_port   what a bare guest does
    machine, host                    `Machine`, and `Host`: several CPUs, several machines
    guest_kernel, events             the kernel under a trace of user addresses; the loop over events
    records, system_loop, replay     a system trace: its records, the loop (for Python: system_loop_py), `Replay`
    simulate                         a trace through a machine
    counters, stops, result, costs   what came of it: counters, errors, `Result`, cycles by costs.toml

A trace of a program is accesses to user addresses: `events` runs it on the guest kernel here, which makes the page
tables. A system trace is what a whole machine did, tables and all: `system_loop` puts them into guest memory and
compares.

Imports `arch` to `kvm`. `config`, `slots`, `devices` and `policy` import no kernel of this folder.

To add an option: a field of `Config`, with its check and a sentence, and its use in `assembly`. To add a counter: a
member of the struct that counts it, and its row in `fastmmu/counters.py`, with its price in costs.toml.
"""

from __future__ import annotations
