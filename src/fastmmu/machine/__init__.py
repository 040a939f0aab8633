"""A run: memory, processor, VMM and guest put together from a `Config`, driven, counted and priced.

    config, slots, devices, policy   what users say: the scheme, memory slots, MMIO devices, exits taken over
    config_fields                    what each field of a `Config` may be
    agile_policy, agile_setup        agile paging: its policy as a text; put together
    vmm_policy                       what KVM does of its own choice, by version and parameters
    topology                         packages, cores, hyperthreads
    board                            what one machine is made of, put together; layout: where it lies in host memory
    instructions, apic_port          its parts `machine.guest` and `machine.apic`: what a bare guest does
    machine, host                    `Machine`, which has the parts, and `Host`: several CPUs, several machines
    hosted, vcpus, ranges            what a host's machine may be; its vCPUs, ranges of memory, that come and go
    shared_caches                    data caches of its CPUs, or of a system trace's
    guest_kernel, kernel_state       the kernel under a trace of user addresses, what it keeps
    kernel_memory, guest_ranges      its frames; ranges that it unmaps and protects, fork, copy on write
    host_blocks                      which 2 MB the host has as one page
    frames, frame_plan, frame_setup  which frames programs get, by policy; as text; before the boot
    buddy, frames_py                 the buddy allocator; what is free, for Python
    thp, thp_plan                    huge pages by policy, khugepaged; as text
    compaction                       pages move so that 2 MB are free
    shootdown, events                how it makes other vCPUs flush; the loop over events
    events_cached                    of that, accesses with data caches under them
    op_counts                        how many accesses of each kind a stretch has
    placed                           pages whose physical addresses a trace says
    records, system_loop, replay     a system trace: its records, the loop (for Python: system_loop_py), `Replay`
    system_cpus, system_judged       its CPUs: machines on one memory, or the vCPUs of a host's machine; their loop
    simulation, running, simulate    one run, fed batch by batch; of either kind of trace; a whole trace, in a call
    region, cuts, series             what a run counts from some access on, and in every so many accesses
    roi                              what it counts between two marks of its trace
    sampling, sampled, estimates     of every so many intervals one; what that says of the whole, with which error
    touches                          what of a stretch of a trace touches a page in a new way
    side_by_side                     a trace through several machines, in threads
    counters, stops, result, costs   what came of it: counters, errors, `Result`, cycles by costs.toml
    rates                            what it was per thousand instructions, by structure
    wholly                           settings, schedules, results: files that are read as a whole, or pipes to their end
    cache_counts, cache_result       what data caches counted; `CacheResult`
    exit_ring, exit_log              the log of exits as arrays; `ExitLog`, with their cycles
    checkpoint                       a machine as a file, from which it goes on (a folder of its own)
    identity                         what a result was made of: events by their content

A part of a machine (`Guest`, `GuestApic`, `Vmm` of the room kvm) holds the board, which knows no part: nothing holds
the machine. What a part does is a method of it; `Machine` passes the flat names on.

A trace of a program is accesses to user addresses: `events` runs it on the guest kernel here, which makes the page
tables. A system trace is what a whole machine did, tables and all: `system_loop` puts them into guest memory and
compares.

Imports `arch` to `kvm`. `config`, `slots`, `devices` and `policy` import no kernel of this folder.

To add an option: a field in `config_fields`, its check and a sentence in `config`, and its use in `board`. To add an
instruction of the guest: a method of `Guest`, and one of `Machine` that calls it. To add a counter: a member of the
struct that counts it, and its row in `fastmmu/counters.py`, with its price in costs.toml.
"""

from __future__ import annotations
