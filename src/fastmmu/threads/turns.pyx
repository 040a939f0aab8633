"""Turns: a fair, recursive lock that long calls give up between the chunks of their work."""

import os

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.pythread cimport PyThread_allocate_lock, PyThread_free_lock
from libc.stdint cimport int64_t, uint64_t

from fastmmu.errors import OutOfMemoryError, PolicyError

cdef extern from *:
    """
    #include "pythread.h"
    #define turn_get(p) __atomic_load_n((p), __ATOMIC_SEQ_CST)
    #define turn_set(p, x) __atomic_store_n((p), (x), __ATOMIC_SEQ_CST)
    #define turn_swap(p, x) __atomic_exchange_n((p), (x), __ATOMIC_SEQ_CST)
    #define turn_add(p, x) __atomic_add_fetch((p), (x), __ATOMIC_SEQ_CST)
    static inline int turn_claim(uint64_t *owner, uint64_t me) {
        uint64_t nobody = 0;
        return __atomic_compare_exchange_n(owner, &nobody, me, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
    #define turn_thread() ((uint64_t) PyThread_get_thread_ident())
    #define turn_open(gate) PyThread_release_lock(gate)
    #define turn_sleep(gate) PyThread_acquire_lock_timed((gate), -1, 0)
    #define turn_doze(gate) (PyThread_acquire_lock_timed((gate), -1, 1) == PY_LOCK_ACQUIRED)
    """
    uint64_t turn_get(uint64_t *p) nogil
    void turn_set(uint64_t *p, uint64_t x) nogil
    uint64_t turn_swap(uint64_t *p, uint64_t x) nogil
    uint64_t turn_add(uint64_t *p, int64_t x) nogil
    bint turn_claim(uint64_t *owner, uint64_t me) nogil
    uint64_t turn_thread() nogil
    void turn_open(PyThread_type_lock gate) nogil
    void turn_sleep(PyThread_type_lock gate) nogil
    bint turn_doze(PyThread_type_lock gate) nogil      # False: a signal came first


cdef uint64_t forks = 0             # of this process, from one with threads perhaps, of which none is here


def _forked():
    global forks
    forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


cdef uint64_t this_thread() noexcept nogil:
    return turn_thread()


cdef bint signalled(Turns turns) noexcept with gil:
    try:
        PyErr_CheckSignals()
    except BaseException as error:
        turns.raised = error
        return True
    return False


cdef class Turns:

    def __cinit__(self):
        self.line = PyThread_allocate_lock()
        self.gate = PyThread_allocate_lock()
        if self.line == NULL or self.gate == NULL:
            raise OutOfMemoryError("no memory for a lock")
        turn_sleep(self.gate)           # opened for each sleeper by who leaves

    def __dealloc__(self):
        if self.line != NULL:
            PyThread_free_lock(self.line)
        if self.gate != NULL:
            turn_open(self.gate)
            PyThread_free_lock(self.gate)

    # ---- calls ----------------------------------------------------------------------------------------------

    cdef Turn take(self):
        # for what is right between two events of a guest that runs, too
        cdef Turn turn = Turn.__new__(Turn)
        self.enter()
        turn.turns = self
        return turn

    cdef Turn alone(self):
        # for what a guest that runs, or whose exit is being handled, cannot do
        cdef Turn turn = self.take()
        if self.busy or self.handling:
            self._refuse()
        return turn

    cdef Turn apart(self):
        # for what a policy may do about the exit that it handles, and nobody else meanwhile
        cdef Turn turn = self.take()
        if (self.busy or self.handling) and self.handling != turn_thread():
            self._refuse()
        return turn

    cdef int _refuse(self) except -1:
        cdef uint64_t me = turn_thread()
        if self.handling == me:
            raise PolicyError("the guest stands still while a VM exit is handled: its instructions cannot run in a "
                              "handler; return an Action first")
        if self.handling:
            raise PolicyError("the guest stands still while a policy handles a VM exit in another thread; wait for the "
                              "end of that call, or give each thread a Machine, Host or TLB of its own")
        if self.busy == me:
            raise PolicyError(f"{self.what} is under way, and was interrupted for this; call it after that has ended")
        raise PolicyError(f"{self.what} is under way in another thread; wait for its end, or give each thread a "
                          "Machine, Host or TLB of its own")

    # ---- long calls -----------------------------------------------------------------------------------------

    cdef int begin(self, str what) except -1:
        self.enter()
        if self.busy or self.handling:
            try:
                self._refuse()
            finally:
                self.leave()
        self.busy = turn_thread()
        self.what = what
        return 0

    cdef void end(self) noexcept:
        self.busy = 0
        self.leave()

    cdef bint between(self, Pace *pace) noexcept nogil:
        # two chunks: those that wait get in, signals are looked for. True: one of them ends the call
        cdef uint64_t then = nanoseconds(), depth
        cdef uint64_t took = then - pace.since
        cdef bint ends = False
        if not pace.since:
            pace.signals = then
            took = CHUNK_SHORT
        pace.since = then
        if took < CHUNK_SHORT and pace.chunk < CHUNK_MOST:
            pace.chunk *= 2
        elif took > CHUNK_LONG and pace.chunk > CHUNK_LEAST:
            pace.chunk //= 2
        if then - pace.signals > SIGNALS_EVERY:
            depth = self.give()         # a handler of signals may use what these turns are of
            ends = signalled(self)
            self.regain(depth)
            pace.since = pace.signals = nanoseconds()
        elif turn_get(&self.waiting):
            self.regain(self.give())
            pace.since = nanoseconds()
        return ends

    cdef int signals(self) except -1:
        if self.raised is not None:
            error, self.raised = self.raised, None
            raise error
        return 0

    # ---- the lock -------------------------------------------------------------------------------------------

    cdef int enter(self) except -1:
        cdef uint64_t me = turn_thread()
        if turn_get(&self.owner) == me:
            self.depth += 1
            return 0
        if turn_get(&self.waiting) or not turn_claim(&self.owner, me):
            self._wait()
        self.depth = 1
        self.forks = forks
        return 0

    cdef void leave(self) noexcept nogil:
        self.depth -= 1
        if not self.depth:
            self.give()

    cdef uint64_t give(self) noexcept nogil:
        # all of it, whatever its depth
        cdef uint64_t depth = self.depth
        turn_set(&self.owner, 0)
        if turn_get(&self.waiting) and turn_swap(&self.asleep, 0):
            turn_open(self.gate)
        return depth

    cdef bint claim(self, uint64_t depth) noexcept nogil:
        # as regain(), where nobody else has it or waits: True; the GIL may be held
        if turn_get(&self.waiting) or not turn_claim(&self.owner, turn_thread()):
            return False
        self.depth = depth
        return True

    cdef void regain(self, uint64_t depth) noexcept nogil:
        cdef uint64_t me = turn_thread()
        if self.claim(depth):
            return
        turn_add(&self.waiting, 1)
        turn_sleep(self.line)
        while not turn_claim(&self.owner, me):
            turn_set(&self.asleep, 1)
            if turn_claim(&self.owner, me):
                if not turn_swap(&self.asleep, 0):      # who gave it has seen a sleeper, and opens the gate
                    turn_sleep(self.gate)
                break
            turn_sleep(self.gate)
        turn_add(&self.waiting, -1)
        turn_open(self.line)
        self.depth = depth

    cdef int _wait(self) except -1:
        # as above, without the GIL while it waits, and a signal can end it
        cdef uint64_t me = turn_thread()
        cdef bint first = False, ours = False
        if self.forks != forks:
            raise PolicyError("another thread used this when the process was forked, and is not here to end it; make "
                              "it anew in the child")
        turn_add(&self.waiting, 1)
        try:
            while True:
                with nogil:
                    first = turn_doze(self.line)
                    while first:
                        ours = turn_claim(&self.owner, me)
                        if ours:
                            break
                        turn_set(&self.asleep, 1)
                        ours = turn_claim(&self.owner, me)
                        if ours or not turn_doze(self.gate):
                            if not turn_swap(&self.asleep, 0):
                                turn_sleep(self.gate)
                            break
                    if first:
                        turn_open(self.line)
                if ours:
                    return 0
                PyErr_CheckSignals()
        finally:
            turn_add(&self.waiting, -1)


@cython.final
@cython.no_gc
@cython.freelist(16)
cdef class Turn:

    def __dealloc__(self):
        if self.turns is not None:
            self.turns.leave()
