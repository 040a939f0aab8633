"""`StackDistances`: distances in every level of a TLB, for Python."""

import numpy as np

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from fastmmu._arguments cimport bytes_in, flag, many, within, words_in
from fastmmu.study.curve.curve_kernel cimport (
    CURVE_BAD_ADDRESS, CURVE_BAD_PROCESS, CURVE_NO_MEMORY, CURVE_OK, MOST_LISTS, NO_KEY, NO_LEVEL, Curve, Level,
    curve_run, follow,
)
from fastmmu.study.curve.stack_distance cimport (
    GROUPS, List, Tree, list_free, list_new, tree_free, tree_know, tree_load, tree_new, tree_order, tree_size,
)

from fastmmu.threads.turns cimport Pace, Turn, Turns, pace_begin

from fastmmu.errors import ConfigError, OutOfMemoryError, TraceError


cdef enum:
    MOST_LIMIT = 1 << 26


cdef class StackDistances:
    """Distances of every access in every level of a TLB, from events that come batch by batch.

    :param levels: for each level its (numbers of sets, depth of their lists).
    :param ports: for reads, writes, modifies, fetches: (first level, its list that decides what misses, ways of that
        list, second level or None); None: they are not looked up.
    :param shift: log2 of the page size. :param pcid: a SWITCH flushes nothing.
    :param limit: farthest distance in a tree that is told from infinity. :param threshold: pages whose 32-bit hash is
        below it go through the trees; 2**32: all; 0: only orders of lists are asked for, no counts.

    A part of a trace, of which others come before it, is counted by an object of its own, with `start`: the number of
    the process that runs, and of each first level (position in `levels`) the order of its list that decides what
    misses, cut off at its ways (:meth:`order_of_list`), where it has a second level. What it :meth:`left` goes to
    :meth:`follow` of the object that has all before it, which is from then on as if it had been fed the events.

    Threads: one feeds it at a time, a second one is refused (PolicyError); it can be read meanwhile.
    """

    cdef Curve c
    cdef uint64_t events
    cdef Turns turns

    def __cinit__(self, levels, ports, shift, pcid, limit, threshold, start=None):
        cdef Level *x
        cdef uint64_t most = within("limit", limit, 1, MOST_LIMIT, ConfigError), number, depth
        cdef uint32_t first, chosen
        cdef uint64_t below = within("threshold", threshold, 0, 1ULL << 32, ConfigError)
        self.turns = Turns()
        self.c.orders_only = not below
        levels = [_parts("a level", each, 2) for each in many("levels", levels)]
        ports = [None if each is None else _parts("a port", each, 4) for each in many("ports", ports)]
        if not 1 <= len(levels) <= 5 or len(ports) != 4:
            raise ConfigError(f"{len(levels)} levels, {len(ports)} ports; there are 1..5 levels and 4 ports")
        self.c.shift, self.c.pcid = within("shift", shift, 12, 30, ConfigError), flag("pcid", pcid)
        for sets, ways in levels:
            sets, depth = many("the sets of a level", sets), within("depth", ways, 1, 1 << 12, ConfigError)
            x = &self.c.level[self.c.levels]
            self.c.levels += 1
            x.last = NO_KEY
            if not sets:
                raise ConfigError("a level has at least one list")
            x.list = <List *> calloc(len(sets), sizeof(List))
            if x.list == NULL:
                raise OutOfMemoryError("no memory for the curves")
            for each in sets:
                number = within("sets", each, 1, 1 << 20, ConfigError)
                if number & (number - 1):
                    raise ConfigError(f"{number} sets of {depth} ways: sets are a power of two up to 1048576, ways up "
                                      "to 4096")
                x.lists += 1
                if not list_new(&x.list[x.lists - 1], number, depth):
                    raise OutOfMemoryError(f"no memory for the curves of {number} sets; give fewer")
            if not tree_new(&x.tree, most, below):
                raise OutOfMemoryError(f"no memory for curves of up to {most} entries; give a lower limit")
        for op, port in enumerate(ports):
            if port is None:
                self.c.first[<int> op] = self.c.second[<int> op] = NO_LEVEL
                continue
            first = within("first level of a port", port[0], 0, self.c.levels - 1, ConfigError)
            x = &self.c.level[first]
            chosen = within("list of a port", port[1], 0, x.lists - 1, ConfigError)
            self.c.first[<int> op], self.c.filter[<int> op] = first, chosen
            self.c.ways[<int> op] = within("ways of a port", port[2], 1, x.list[chosen].depth, ConfigError)
            self.c.second[<int> op] = NO_LEVEL if port[3] is None else within(
                "second level of a port", port[3], 0, self.c.levels - 1, ConfigError)
        if start is not None:
            process, orders = _parts("start", start, 2)
            self._start(process, orders)

    cdef _start(self, object process, object orders):
        cdef Level *x
        cdef uint32_t op, i
        self.c.process = within("process", process, 0, 4094 if self.c.pcid else (1 << 18) - 1, ConfigError)
        for i in range(self.c.levels):
            self.c.level[i].cut = True
            if self.c.level[i].lists > MOST_LISTS:
                raise ConfigError(f"{self.c.level[i].lists} numbers of sets of a level; in parts up to {MOST_LISTS}")
        for op in range(4):
            if self.c.second[op] == NO_LEVEL:
                continue
            x = &self.c.level[self.c.first[op]]
            if x.decides and (x.filter != self.c.filter[op] or x.ways != self.c.ways[op]):
                raise ConfigError("in parts all ports of a level have one list that decides what misses")
            if x.decides:
                continue
            x.filter, x.ways, x.decides = self.c.filter[op], self.c.ways[op], True
            if self.c.first[op] not in orders:
                raise ConfigError(f"start has no order of level {self.c.first[op]}, whose misses are looked up again")
            if not list_new(&x.before, x.list[x.filter].sets, x.ways):
                raise OutOfMemoryError("no memory for the curves")
            many_each, keys = _parts("an order", orders[self.c.first[op]], 2)
            _fill(&x.before, many_each, keys)

    def __dealloc__(self):
        cdef uint32_t i, j
        for i in range(self.c.levels):
            for j in range(self.c.level[i].lists):
                list_free(&self.c.level[i].list[j])
            free(self.c.level[i].list)
            tree_free(&self.c.level[i].tree)
            list_free(&self.c.level[i].before)
            free(self.c.level[i].record)
            free(self.c.level[i].had)

    def feed(self, op, size, addr):
        """Events of a trace; all arrays have one length.

        :raises TraceError: an address of more than 57 bits, a process number too large.
        """
        cdef const uint8_t[::1] ops = bytes_in("op", op, TraceError), sizes = bytes_in("size", size, TraceError)
        cdef const uint64_t[::1] addrs = words_in("addr", addr, TraceError)
        cdef uint64_t n = addrs.shape[0]
        if <uint64_t> ops.shape[0] != n or <uint64_t> sizes.shape[0] != n:
            raise TraceError(f"op, size and addr have different lengths: {ops.shape[0]}, {sizes.shape[0]}, {n}")
        if n == 0:
            return
        self.turns.begin("StackDistances.feed()")
        try:
            self._feed(ops, sizes, addrs)
        finally:
            self.turns.end()

    cdef _feed(self, const uint8_t[::1] op, const uint8_t[::1] size, const uint64_t[::1] addr):
        cdef uint64_t n = addr.shape[0], done = 0, did = 0, chunk
        cdef int outcome
        cdef Pace pace
        with nogil:
            pace_begin(&pace)
            while True:
                chunk = min(n - done, pace.chunk)
                outcome = curve_run(&self.c, &op[done], &size[done], &addr[done], chunk, &did)
                done += did
                if outcome != CURVE_OK or done == n or self.turns.between(&pace):
                    break
        self.events += done
        self.turns.signals()
        if outcome == CURVE_BAD_ADDRESS:
            raise TraceError(f"event {self.events}: {addr[done]:#x} has more than 57 bits")
        if outcome == CURVE_BAD_PROCESS:
            raise TraceError(f"event {self.events}: process number {addr[done]} is not below "
                             f"{4095 if self.c.pcid else 1 << 18}; number processes from 0")
        if outcome == CURVE_NO_MEMORY:
            raise OutOfMemoryError("no memory for the order of so many pages; sample them (sample=0.01)")

    def counts(self):
        """dict of int: accesses, flushes (SWITCH, FORK), invalidations (INVLPG, UNMAP, MUNMAP, PROTECT)."""
        cdef Turn _turn = self.turns.take()
        return {"accesses": self.c.accesses, "flushes": self.c.flushes, "invalidations": self.c.invalidations}

    def lookups(self, level):
        """Number of lookups of a level."""
        cdef Turn _turn = self.turns.take()
        return self._level(level).lookups

    def of_list(self, level, number):
        """Lookups by distance in a list: int64 (depth + 1,); [i] of distance i + 1, the last: farther or never."""
        cdef Turn _turn = self.turns.take()
        cdef Level *x = self._level(level)
        cdef uint32_t i, chosen
        chosen = within("number of a list", number, 0, x.lists - 1, ConfigError)
        found = np.zeros(x.list[chosen].depth + 1, np.int64)
        cdef int64_t[::1] to = found
        for i in range(x.list[chosen].depth + 1):
            to[i] = x.list[chosen].hist[i]
        to[0] += x.repeats
        return found

    def of_tree(self, level):
        """Sampled lookups by distance: int64 (8 groups, limit + 1); [:, 0]: farther than the limit, or never.

        An access to the same page as the one before it, which hits at every size, is not among them.
        """
        cdef Turn _turn = self.turns.take()
        cdef Level *x = self._level(level)
        cdef uint64_t i, w = x.tree.limit + 1
        cdef int g
        found = np.zeros((GROUPS, w), np.int64)
        cdef int64_t[:, ::1] to = found
        for g in range(GROUPS):
            for i in range(w):
                to[g, i] = x.tree.hist[g * w + i]
        return found

    def pages(self, level):
        """Distinct pages that went through the tree of a level."""
        cdef Turn _turn = self.turns.take()
        return self._level(level).tree.pages

    def begin_at(self, event):
        """Number of the first event that is fed, for errors."""
        cdef Turn _turn = self.turns.take()
        self.events = within("event", event, 0, (1ULL << 63) - 1, ConfigError)

    def process(self):
        """Number of the process that runs."""
        cdef Turn _turn = self.turns.take()
        return self.c.process

    def order_of_list(self, level, number):
        """The order of a list: (uint32 (sets,): how many each set has, uint64 (sets, depth): these, the most recent
        first)."""
        cdef Turn _turn = self.turns.take()
        cdef Level *x = self._level(level)
        return _order(&x.list[within("number of a list", number, 0, x.lists - 1, ConfigError)])

    def full(self, level):
        """Whether no list of a level asks what was before: each of its sets has as many as it may."""
        cdef Turn _turn = self.turns.take()
        cdef Level *x = self._level(level)
        cdef uint32_t j, s
        for j in range(x.lists):
            for s in range(x.list[j].sets):
                if x.list[j].n[s] < x.list[j].depth:
                    return False
        return True

    def left(self):
        """What a part leaves, for :meth:`follow` of what is before it: dict of numbers and arrays, to be sent on."""
        cdef Turn _turn = self.turns.take()
        cdef Level *x
        cdef uint32_t i, j
        levels = []
        for i in range(self.c.levels):
            x = &self.c.level[i]
            lists = [(*_order(&x.list[j]), _copied(x.list[j].hist, x.list[j].depth + 1)) for j in range(x.lists)]
            where, counted = _nonzero(x.tree.hist, GROUPS * (x.tree.limit + 1))
            records = _copied(<const uint64_t *> x.record, 2 * x.records).reshape(-1, 2)
            order = np.empty(tree_size(&x.tree), np.uint64)
            _order_of_tree(&x.tree, order)
            pages = _copied(x.tree.page, x.tree.mask + 1)
            levels.append({
                "lookups": x.lookups, "repeats": x.repeats, "last": x.last, "begun": x.begun, "lists": lists,
                "where": where, "counted": counted, "order": order, "pages": pages[pages != 0] - np.uint64(1),
                "keys": np.ascontiguousarray(records[:, 0]), "how": np.ascontiguousarray(records[:, 1]),
            })
        return {"accesses": self.c.accesses, "flushes": self.c.flushes, "invalidations": self.c.invalidations,
                "process": self.c.process, "levels": levels}

    def follow(self, left):
        """What came behind, of a part that was counted by itself: :meth:`left` of an object made of the same numbers,
        which began where this one ends.

        :raises ConfigError: it is none. :raises OutOfMemoryError: the order does not fit.
        """
        cdef Turn _turn = self.turns.take()
        cdef uint32_t i
        try:
            levels = list(left["levels"])
            if len(levels) != self.c.levels:
                raise ValueError(f"{len(levels)} levels where there are {self.c.levels}")
            for i in range(self.c.levels):
                self._follow(&self.c.level[i], levels[i], bool(left["flushes"]))
            self.c.accesses += <uint64_t> left["accesses"]
            self.c.flushes += <uint64_t> left["flushes"]
            self.c.invalidations += <uint64_t> left["invalidations"]
            self.c.process = <uint64_t> left["process"] & 0x3FFFF
        except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"this is not what a part left: {type(error).__name__}: {error}") from error

    cdef _follow(self, Level *x, object part, bint flushed):
        cdef const uint64_t[::1] keys = words_in("keys", part["keys"], ConfigError)
        cdef const uint64_t[::1] how = words_in("how", part["how"], ConfigError)
        cdef const uint64_t[::1] order = words_in("order", part["order"], ConfigError)
        cdef const uint64_t[::1] pages = words_in("pages", part["pages"], ConfigError)
        cdef uint64_t n = keys.shape[0], i, on_top = order.shape[0]
        cdef uint32_t j
        lists = list(part["lists"])
        if <uint64_t> how.shape[0] != n or len(lists) != x.lists:
            raise ValueError("records or lists of another number")
        if n:
            with nogil:
                follow(x, &keys[0], &how[0], n)
        for j in range(x.lists):
            many_each, ordered, counted = _parts("a list", lists[j], 3)
            _on_top(&x.list[j], many_each, ordered, counted, flushed)
        _counted_in(&x.tree, part["where"], part["counted"])
        for i in range(<uint64_t> pages.shape[0]):
            tree_know(&x.tree, pages[i])
        if flushed or on_top:
            below = np.empty(tree_size(&x.tree), np.uint64)
            _order_of_tree(&x.tree, below)
            whole = np.concatenate([np.asarray(order), below[on_top:]] if not flushed else [np.asarray(order)])
            _load(&x.tree, whole)
        x.lookups += <uint64_t> part["lookups"]
        x.repeats += <uint64_t> part["repeats"]
        if flushed or part["begun"]:
            x.last = <uint64_t> part["last"]
        if x.tree.failed:
            raise OutOfMemoryError("no memory for the order of so many pages; sample them (sample=0.01)")

    cdef Level *_level(self, object level) except NULL:
        return &self.c.level[within("number of a level", level, 0, self.c.levels - 1, ConfigError)]


cdef object _copied(const uint64_t *at, uint64_t n):
    found = np.empty(n, np.uint64)
    cdef uint64_t[::1] to = found
    cdef uint64_t i
    for i in range(n):
        to[i] = at[i]
    return found


cdef tuple _nonzero(const uint64_t *at, uint64_t n):
    # Where they are, and these.
    cdef uint64_t i, full = 0
    with nogil:
        for i in range(n):
            full += at[i] != 0
    where, found = np.empty(full, np.uint64), np.empty(full, np.uint64)
    cdef uint64_t[::1] place = where, value = found
    full = 0
    for i in range(n):
        if at[i]:
            place[full], value[full] = i, at[i]
            full += 1
    return where, found


cdef tuple _order(const List *l):
    n = np.empty(l.sets, np.uint32)
    cdef uint32_t[::1] to = n
    cdef uint32_t s
    for s in range(l.sets):
        to[s] = l.n[s]
    return n, _copied(l.key, <uint64_t> l.sets * l.depth).reshape(l.sets, l.depth)


cdef _fill(List *l, object many_each, object keys):
    # An order as `_order` has it, cut off at the depth of this list.
    cdef const uint64_t[::1] n = words_in("n", np.ascontiguousarray(many_each, np.uint64), ConfigError)
    table = np.ascontiguousarray(keys, np.uint64)
    if table.ndim != 2 or table.shape[0] != l.sets or <uint64_t> n.shape[0] != l.sets or table.shape[1] < l.depth:
        raise ConfigError(f"an order of {table.shape} is none of {l.sets} sets of {l.depth} ways")
    cdef const uint64_t[::1] key = words_in("keys", np.ascontiguousarray(table[:, :l.depth]).reshape(-1), ConfigError)
    cdef uint64_t i
    for i in range(<uint64_t> l.sets * l.depth):
        l.key[i] = key[i]
    for i in range(l.sets):
        l.n[i] = <uint32_t> min(n[i], <uint64_t> l.depth)


cdef _on_top(List *l, object many_each, object keys, object counted, bint alone):
    # The order of a part on that below it; alone: nothing is left of that.
    cdef const uint64_t[::1] n = words_in("n", np.ascontiguousarray(many_each, np.uint64), ConfigError)
    cdef const uint64_t[::1] key = words_in("keys", np.ascontiguousarray(keys, np.uint64).reshape(-1), ConfigError)
    cdef const uint64_t[::1] hist = words_in("counted", counted, ConfigError)
    cdef uint64_t i, s, top
    if <uint64_t> n.shape[0] != l.sets or <uint64_t> key.shape[0] != <uint64_t> l.sets * l.depth:
        raise ValueError(f"an order of {n.shape[0]} sets, {key.shape[0]} ways in all")
    if <uint64_t> hist.shape[0] != l.depth + 1:
        raise ValueError(f"{hist.shape[0]} distances of a list of {l.depth}")
    for i in range(l.depth + 1):
        l.hist[i] += hist[i]
    for s in range(l.sets):
        top = min(n[s], <uint64_t> l.depth)
        for i in range(top):
            l.key[s * l.depth + i] = key[s * l.depth + i]
        if alone or l.n[s] < top:
            l.n[s] = <uint32_t> top


cdef _counted_in(Tree *t, object where, object counted):
    cdef const uint64_t[::1] at = words_in("where", np.ascontiguousarray(where, np.uint64), ConfigError)
    cdef const uint64_t[::1] n = words_in("counted", np.ascontiguousarray(counted, np.uint64), ConfigError)
    cdef uint64_t i
    if at.shape[0] != n.shape[0]:
        raise ValueError("distances of another number")
    for i in range(<uint64_t> at.shape[0]):
        if at[i] >= GROUPS * (t.limit + 1):
            raise ValueError(f"distance {at[i]} is beyond the limit")
        t.hist[at[i]] += n[i]


cdef _order_of_tree(const Tree *t, uint64_t[::1] to):
    if to.shape[0]:
        with nogil:
            tree_order(t, &to[0])


cdef _load(Tree *t, const uint64_t[::1] order):
    cdef uint64_t nothing = 0, n = order.shape[0]
    with nogil:
        tree_load(t, &order[0] if n else &nothing, n)


cdef list _parts(str name, object value, int n):
    found = many(name, value)
    if len(found) != n:
        raise ConfigError(f"{name} has {n} parts, not {len(found)}")
    return found
