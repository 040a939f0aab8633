"""Which frames of guest memory a program gets, by policy: what machine/frames.pyx and machine/buddy.pyx do."""

from __future__ import annotations

import math
from collections.abc import Callable

from fastmmu.reference.machine.guest_kernel import Frames

__all__ = ["Buddy", "PolicyFrames", "permutation"]

SMALL, LARGE, TOP = 1 << 12, 1 << 21, 9
MASK = (1 << 64) - 1
TRIES, REGION = 1024, 1 << 18
MOST_RESERVED = 512


def mixed(x: int) -> int:
    """The finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def seeded(seed: int, i: int) -> int:
    """Number i of the stream of a seed."""
    return mixed(seed + (i + 1) * 0x9E3779B97F4A7C15 & MASK)


def permutation(n: int, seed: int) -> Callable[[int], int]:
    """A permutation of 0..n-1: a Feistel network of four rounds (Luby and Rackoff, 1988) over the next power of four,
    walked until the number is below n (Black and Rogaway, CT-RSA 2002)."""
    half = next(bits for bits in range(32) if 1 << 2 * bits >= n)
    keys, mask = [seeded(seed, i) for i in range(4)], (1 << half) - 1

    def once(i: int) -> int:
        left, right = i >> half, i & mask
        for key in keys:  # each round changes one half by the other
            left, right = right, left ^ mixed(right ^ key) & mask
        return left << half | right

    def permuted(i: int) -> int:
        i = once(i)
        while i >= n:
            i = once(i)
        return i

    return permuted


class Buddy:
    """Free chunks of 2**order frames, of each order the last freed first (Linux' mm/page_alloc.c).

    :param n: frames. :param unusable: FMFI at order 9 that it begins with, None: all is free, in order. :param seed: of
        what is free at first, and in which order.
    """

    def __init__(self, n: int, unusable: float | None = None, seed: int = 0) -> None:
        self.n = n
        self.lists: list[dict[int, None]] = [{} for _ in range(TOP + 1)]  # the last one is given next
        blocks = n >> TOP
        order_of = permutation(blocks, seed)
        broken = math.floor(2 * unusable * blocks / (1 + unusable) + 0.5) if unusable else 0
        for i in reversed(range(blocks)):
            block = i if unusable is None else order_of(i)
            if i >= min(broken, blocks):
                self.lists[TOP][block] = None
                continue
            order = seeded(seed, block << 10) % 9
            pairs = 256 >> order
            for j in reversed(range(pairs)):
                self.lists[order][(block * pairs + j) * 2 + (seeded(seed, block << 10 | 1 + j) & 1)] = None

    def chunks(self) -> tuple[int, ...]:
        """How many, by order."""
        return tuple(len(chunks) for chunks in self.lists)

    def free(self, frame: int) -> int | None:
        """The order of the free chunk that has the frame."""
        return next((order for order, chunks in enumerate(self.lists) if frame >> order in chunks), None)

    def take(self, order: int) -> int | None:
        """The first frame of a chunk: of the smallest that is free and large enough the lower end."""
        for found in range(order, TOP + 1):
            if self.lists[found]:
                frame = next(reversed(self.lists[found])) << found
                assert self.take_at(frame, order)
                return frame
        return None

    def take_at(self, frame: int, order: int) -> bool:
        """This chunk; what is left of the free one around it stays free, in halves, the smallest freed last."""
        found = self.free(frame)
        if found is None or found < order:
            return False
        del self.lists[found][frame >> found]
        for part in range(found - 1, order - 1, -1):
            self.lists[part][frame >> part ^ 1] = None
        return True

    def give(self, frame: int, order: int) -> None:
        """Back, joined with its buddy while that is free."""
        while order < TOP and (frame >> order ^ 1) in self.lists[order]:
            del self.lists[order][frame >> order ^ 1]
            order += 1
        self.lists[order][frame >> order] = None


class Reservation:
    """Frames for a group of linear pages, from `first` on; `left`: those not given out."""

    def __init__(self, first: int, n: int) -> None:
        self.first, self.left = first, set(range(first, first + n))


class PolicyFrames(Frames):
    """Guest memory of which programs get frames by a policy; tables have blocks of their own, the 64th part of memory,
    at least two, before they take frames as well.

    :param policy: "shuffled", "buddy", "reserve", "contiguous", "of". :param group: pages of a reservation.
    :param runs: of a recorded guest, (pages, frame) in the order of linear addresses.
    """

    def __init__(
        self, nbytes: int, policy: str, *, unusable: float | None = None, seed: int = 0, group: int = 16,
        runs: tuple[tuple[int, int], ...] = (),
    ) -> None:  # fmt: skip
        super().__init__(nbytes)
        self.base = LARGE * (1 + max(2, nbytes // LARGE // 64))
        self.policy, self.group, self.cursor = policy, group, 0
        n = (nbytes - self.base) // SMALL
        self.buddy, self.order = Buddy(n, unusable, seed), permutation(n, seed)
        self.reserved: dict[tuple[int, int], Reservation] = {}
        self.targets: dict[tuple[int, int], int] = {}
        self.groups: list[tuple[int, int, int]] = []  # of recorded pages: first, how many, frame
        for pages, frame in runs:
            at = self.groups[-1][0] + self.groups[-1][1] if self.groups else 0
            for i in range(0, pages, MOST_RESERVED):
                self.groups.append((at + i, min(pages - i, MOST_RESERVED), frame + i))

    def block(self) -> int | None:
        """Of tables."""
        return super().block() if self.next + LARGE <= self.base else None

    def take(self, kind: str, process: int = 0, la: int = 0) -> int | None:
        """A frame of a kind, for an address of a process."""
        if kind == "table":
            found = super().take(kind)
            if found is not None:
                return found
            frame = self.single()
        elif kind == "large":
            frame = self.target(process, la >> 21 << 9, 9) if self.policy == "contiguous" else self.buddy.take(9)
        elif self.policy == "shuffled":
            frame = self.shuffled()
        elif self.policy == "contiguous":
            frame = self.target(process, la >> 12, 0)
        elif self.policy in ("reserve", "of"):
            frame = self.reserve(process, la >> 12)
        else:
            frame = self.buddy.take(0)
        return None if frame is None else self.base + SMALL * frame

    def back(self, frame: int, kind: str) -> None:
        """To the buddy allocator."""
        self.buddy.give((frame - self.base) // SMALL, 9 if kind == "large" else 0)

    def shuffled(self) -> int | None:
        """The next of all frames in their order that is free."""
        for _ in range(TRIES if sum(self.buddy.chunks()) else 0):
            frame = self.order(self.cursor)
            self.cursor = (self.cursor + 1) % self.buddy.n
            if self.buddy.take_at(frame, 0):
                return frame
        return self.buddy.take(0)

    def single(self) -> int | None:
        """Any frame; reservations end for it, the oldest first."""
        frame = self.buddy.take(0)
        while frame is None and self.reserved:
            first = self.reserved.pop(next(iter(self.reserved)))
            for other in sorted(first.left):
                self.buddy.give(other, 0)
            frame = self.buddy.take(0)
        return frame

    def reserve(self, process: int, page: int) -> int | None:
        """PTEMagnet: the frame that is reserved for the page; the first page of its group reserves them all."""
        first, n, want = page // self.group * self.group, self.group, None
        if self.policy == "of":
            last, more, _ = self.groups[-1]
            at = page % (last + more)
            first, n, want = next(group for group in reversed(self.groups) if group[0] <= at)
            first += page - at
        key = process, first
        if key not in self.reserved:
            if want is not None and all(
                i < self.buddy.n and self.buddy.free(i) is not None for i in range(want, want + n)
            ):
                base: int | None = want
                for i in range(want, want + n):
                    self.buddy.take_at(i, 0)
            else:
                order = (n - 1).bit_length()
                base = self.buddy.take(order)
                if base is None:
                    return self.single()
                for i in range(base + n, base + (1 << order)):
                    self.buddy.give(i, 0)
            assert base is not None
            self.reserved[key] = Reservation(base, n)
        mine = self.reserved[key]
        frame = mine.first + page - first
        if frame in mine.left:
            mine.left.remove(frame)
            if not mine.left:
                del self.reserved[key]
            return frame
        return frame if self.buddy.take_at(frame, 0) else self.single()

    def target(self, process: int, page: int, order: int) -> int | None:
        """CA paging: as far from the page as the region's pages before, if it is free; else in the next free block."""
        key, within = (process, page // REGION), page % REGION
        if key in self.targets and self.take_inside(self.targets[key] + within, order):
            return self.targets[key] + within
        blocks = self.buddy.n >> TOP
        free = self.buddy.lists[TOP]
        if not free:
            return self.buddy.take(order)
        block = next(i % blocks for i in range(self.cursor, self.cursor + blocks) if i % blocks in free)
        self.targets[key] = (block << TOP) - within // 512 * 512
        self.cursor = (block + (REGION >> TOP)) % blocks
        frame = self.targets[key] + within
        self.buddy.take_at(frame, order)
        return frame

    def take_inside(self, frame: int, order: int) -> bool:
        """A chunk, if it is one of guest memory's, and free."""
        return 0 <= frame < self.buddy.n and self.buddy.take_at(frame, order)
