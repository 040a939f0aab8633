"""The interrupt side of a vCPU, its local APIC and timer, written and read. Header: interrupts.pxd.

Registers of an APIC under a VMM lie in host memory.
"""

import numpy as np

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc

from fastmmu.arch.vmx cimport N_REASONS
from fastmmu.cpu.apic cimport Apic
from fastmmu.cpu.interrupts cimport MAX_FRAMES, Delivery, Frame, Interrupts
from fastmmu.cpu.tpr_patch cimport SITE_BYTES, Patch
from fastmmu.cpu.vapic cimport Vapic
from fastmmu.machine.checkpoint.archive cimport _Archive
from fastmmu.paging.memory cimport mem_holds

from fastmmu.errors import OutOfMemoryError


cdef int keep_interrupts(_Archive a, Interrupts *irq) except -1:
    # Interrupts of cpu/interrupts.pxd. Of the new machine: v virt way rule handler svm apic_page tpr_shadow
    # descriptor clock timer_reason handler_length. Derived: log_room. Elsewhere: frame log log_n apic patch
    a.under("irq")
    a.same("way", irq.way)
    a.same("rule", irq.rule)
    a.same("handler", irq.handler)
    a.same("timer_reason", irq.timer_reason)
    a.same("handler_length", irq.handler_length)
    a.u64("la", &irq.la)
    a.flag("interrupts_on", &irq.interrupts_on)
    a.flag("posting", &irq.posting)
    a.flag("request_event", &irq.request_event)
    a.flag("below", &irq.below)
    a.number("inject", &irq.inject, -1, 255)
    a.number("arriving", &irq.arriving, -1, 255)
    a.flag("arriving_level", &irq.arriving_level)
    a.u64("arrived", &irq.arrived)
    a.u16("rtc_vector", &irq.rtc_vector)
    a.flag("notified", &irq.notified)
    a.u64("value", &irq.value)
    a.u32("number", &irq.number)
    a.flag("writes", &irq.writes)
    a.u64("now", &irq.now)
    a.u64("timed", &irq.timed)
    a.u32("n_frames", &irq.n_frames, MAX_FRAMES - 1)
    a.plain("arrival", irq.arrival, sizeof(irq.arrival))
    a.plain("c", &irq.c, sizeof(irq.c))
    a.plain("own_page", irq.own_page, sizeof(irq.own_page))
    a.plain("own_descriptor", irq.own_descriptor, sizeof(irq.own_descriptor))
    keep_frames(a, irq)
    keep_deliveries(a, irq)
    keep_apic(a, &irq.apic)
    keep_virtual(a, &irq.virt)
    keep_patch(a, irq)
    return 0


cdef int keep_frames(_Archive a, Interrupts *irq) except -1:
    # Frame of cpu/interrupts.pxd: of the handlers under way
    cdef uint32_t i
    cdef Frame *f
    for i in range(irq.n_frames):
        f = &irq.frame[i]
        a.u32(f"frame{int(i)}.vector", &f.vector, 255)
        a.u32(f"frame{int(i)}.tpr", &f.tpr)
        a.flag(f"frame{int(i)}.raised", &f.raised)
        a.u64(f"frame{int(i)}.left", &f.left)
    return 0


cdef int keep_deliveries(_Archive a, Interrupts *irq) except -1:
    # Delivery of cpu/interrupts.pxd: all that there were
    cdef uint64_t i, n = irq.log_n
    cdef uint32_t[::1] vector
    cdef uint64_t[::1] at
    if not a.loading:
        vector, at = a.put("log.vector", np.zeros(n, np.uint32)), a.put("log.at", np.zeros(n, np.uint64))
        for i in range(n):
            vector[i] = irq.log[i].vector
            at[i] = irq.log[i].at
        return 0
    return deliveries_in(a, irq, a.array("log.vector", np.uint32), a.array("log.at", np.uint64))


cdef int deliveries_in(_Archive a, Interrupts *irq, const uint32_t[::1] vector, const uint64_t[::1] at) except -1:
    cdef uint64_t i, n = vector.shape[0]
    if <uint64_t> at.shape[0] != n:
        a.refuse("interrupts were delivered at no time")
    free(irq.log)
    irq.log_n = irq.log_room = 0
    irq.log = <Delivery *> malloc(max(1, n) * sizeof(Delivery))
    if irq.log == NULL:
        raise OutOfMemoryError("no memory for the interrupts that were delivered")
    for i in range(n):
        irq.log[i].vector = vector[i]
        irq.log[i].at = at[i]
    irq.log_n = irq.log_room = n
    return 0


cdef int keep_apic(_Archive a, Apic *x) except -1:
    # Apic of cpu/apic.pxd. Of the new machine: page id
    a.under("apic")
    a.same("id", x.id)
    a.u64("base", &x.base)
    a.u64("ticks_left", &x.ticks_left)
    a.u64("deadline", &x.deadline)
    a.u32("mode", &x.mode, 3)
    a.u32("shift", &x.shift, 7)
    return 0


cdef int keep_virtual(_Archive a, Vapic *x) except -1:
    # Vapic of cpu/vapic.pxd. Of the new machine: page
    a.under("vapic")
    a.flag("tpr_shadow", &x.tpr_shadow)
    a.flag("accesses", &x.accesses)
    a.flag("x2apic", &x.x2apic)
    a.flag("registers", &x.registers)
    a.flag("delivery", &x.delivery)
    a.flag("window_exiting", &x.window_exiting)
    a.flag("cr8_load_exiting", &x.cr8_load_exiting)
    a.flag("cr8_store_exiting", &x.cr8_store_exiting)
    a.u8("threshold", &x.threshold)
    a.u8("rvi", &x.rvi)
    a.u8("svi", &x.svi)
    a.u8("vppr", &x.vppr)
    a.flag("pending", &x.pending)
    a.plain("eoi_exit", x.eoi_exit, sizeof(x.eoi_exit))
    a.u32("reason", &x.reason, N_REASONS - 1)
    a.u64("qualification", &x.qualification)
    a.u64("data", &x.data)
    return 0


cdef int keep_patch(_Archive a, Interrupts *irq) except -1:
    # Patch of cpu/tpr_patch.pxd. Of the new machine: cpu one_vcpu code_la
    cdef Patch *x = &irq.patch
    a.under("patch")
    a.same("cpu", x.cpu)
    a.same("one_vcpu", x.one_vcpu)
    a.same("code_la", x.code_la)
    a.u64("rom_la", &x.rom_la)
    a.u64("record_hpa", &x.record_hpa)
    a.flag("in_use", &x.in_use)
    a.u32("number", &x.number)
    a.u64("ip", &x.ip)
    a.u64("ip_hpa", &x.ip_hpa)
    a.flag("at_site", &x.at_site)
    a.flag("enabling", &x.enabling)
    if a.loading and not (mem_holds(irq.v.mem, x.record_hpa, 8) and mem_holds(irq.v.mem, x.ip_hpa, SITE_BYTES)):
        a.refuse("the records of the TPR lie outside memory")
    return 0
