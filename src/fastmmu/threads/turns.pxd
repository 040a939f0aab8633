# Turns: who of several threads may use an object with calls that take long, and that let others in between.
#
#   a call:        turn = self.turns.take()           waits; the turn ends with the local variable
#                  turn = self.turns.alone()          and is refused while a guest runs, or stands in a handler
#   a long call:   self.turns.begin("Machine.run()")  refused likewise
#                  ... a chunk of its work without the GIL, until self.turns.between(&pace) says that a signal ends it
#                  self.turns.signals()              raises what the signal's handler did
#                  self.turns.end()
#
# A lock of its own, because a long call gives it up and takes it again without the interpreter, and because it must
# hold without a GIL, too. The thread that has it may take it again. Others wait in line: whoever gives it up between
# two chunks has it again after the first of them.

from cpython.pythread cimport PyThread_type_lock
from libc.stdint cimport uint64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec


cdef enum:
    CHUNK_FIRST = 1 << 12       # how many events, addresses, ... a long call does before others may get in
    CHUNK_LEAST = 1 << 6
    CHUNK_MOST = 1 << 14
    CHUNK_SHORT = 250_000       # nanoseconds; shorter chunks are doubled,
    CHUNK_LONG = 1_000_000      # longer ones halved
    SIGNALS_EVERY = 200_000_000

cdef struct Pace:               # of a long call
    uint64_t chunk
    uint64_t since              # time when this chunk began; 0: not known
    uint64_t signals            # time when signals were looked for


cdef class Turns:
    cdef uint64_t owner         # thread whose turn it is; 0: nobody's
    cdef uint64_t depth         # times that it has taken it
    cdef uint64_t waiting       # threads that wait
    cdef uint64_t asleep        # the first of them sleeps at the gate
    cdef PyThread_type_lock line, gate
    cdef uint64_t forks         # of the process, when it was taken last
    cdef uint64_t busy          # thread of the long call under way; 0: none is
    cdef uint64_t handling      # thread in which a Python policy handles a VM exit; 0: none does
    cdef str what               # the long call
    cdef object raised          # what a handler of signals raised between two of its chunks
    cdef Turn take(self)
    cdef Turn alone(self)
    cdef Turn apart(self)
    cdef int enter(self) except -1
    cdef void leave(self) noexcept nogil
    cdef int begin(self, str what) except -1
    cdef void end(self) noexcept
    cdef bint between(self, Pace *pace) noexcept nogil
    cdef int signals(self) except -1
    cdef uint64_t give(self) noexcept nogil
    cdef bint claim(self, uint64_t depth) noexcept nogil
    cdef void regain(self, uint64_t depth) noexcept nogil
    cdef int _wait(self) except -1
    cdef int _refuse(self) except -1


cdef class Turn:                # from when it was taken until the object goes
    cdef Turns turns


cdef uint64_t this_thread() noexcept nogil


cdef inline uint64_t nanoseconds() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <uint64_t> t.tv_sec * 1_000_000_000 + <uint64_t> t.tv_nsec


cdef inline void pace_begin(Pace *pace) noexcept nogil:
    # the clock is looked at after the first chunk: most calls have no other
    pace.chunk = CHUNK_FIRST
    pace.since = pace.signals = 0
