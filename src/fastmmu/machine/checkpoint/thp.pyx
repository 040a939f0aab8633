"""What programs advised of their pages, and how far khugepaged has come; header: thp.pxd."""

import numpy as np

from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from fastmmu.machine.checkpoint.archive cimport _Archive
from fastmmu.machine.kernel_state cimport NO_PROCESS, PAGES_POLICY, Advice, GuestKernel, Thp
from fastmmu.paging.hash_table cimport hash_find, hash_free, hash_put

from fastmmu.errors import OutOfMemoryError

cdef enum:
    AREA_BITS = 46              # process and number of an area, in the key of an Advice


cdef int keep_thp(_Archive a, GuestKernel *k) except -1:
    # Thp of machine/kernel_state.pxd. Of the new machine: mode defrag scan_pages scan_every max_ptes_none. Elsewhere:
    # advice
    cdef Thp *t = &k.thp
    if k.pages != PAGES_POLICY:
        return 0
    a.u64("thp.scan_left", &t.scan_left, t.scan_every)
    a.u32("thp.scan_process", &t.scan_process)
    a.u64("thp.scan_la", &t.scan_la)
    if a.loading:
        if bool(t.scan_every) != bool(t.scan_left):
            a.refuse("khugepaged is never due")
        if t.scan_process != NO_PROCESS and t.scan_process >= k.n_roots:
            a.refuse(f"khugepaged goes on with process {int(t.scan_process)}, and there is none")
    return keep_advice(a, t)


cdef int keep_advice(_Archive a, Thp *t) except -1:
    # Advice of machine/kernel_state.pxd: key huge nohuge
    cdef uint64_t i, at = 0, room = sizeof(Advice) // 8
    cdef uint64_t[:, ::1] to
    cdef const uint64_t[::1] of
    cdef Advice *x
    if not a.loading:
        rows = np.empty((t.advice.used, room), np.uint64)
        to = rows
        for i in range(t.advice.n):
            x = <Advice *> (t.advice.slots + i * t.advice.size)
            if x.key:
                memcpy(&to[at, 0], x, sizeof(Advice))
                at += 1
        a.put("thp.advice", rows[np.argsort(rows[:, 0])].reshape(-1))
        return 0
    of = a.array("thp.advice", np.uint64)
    hash_free(&t.advice)
    if of.shape[0] % room:
        a.refuse("the advice of programs ends within a row")
    for i in range(0, <uint64_t> of.shape[0], room):
        if of[i] >> AREA_BITS != 1 << (63 - AREA_BITS) or hash_find(&t.advice, of[i]) != NULL:
            a.refuse("programs advised of no area, or twice")
        x = <Advice *> hash_put(&t.advice, of[i])
        if x == NULL:
            raise OutOfMemoryError("no memory for what programs advised")
        memcpy(x, &of[i], sizeof(Advice))
    return 0
