"""Pages of the guest that move so that 2 MB are free: what machine/compaction.pyx does, as mm/compaction.c of Linux."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from fastmmu.reference.machine.frames import PolicyFrames, seeded

if TYPE_CHECKING:
    from fastmmu.reference.machine.guest_kernel import Guest, Page

__all__ = ["Compaction"]

SMALL, LARGE, BLOCK, MOST_DEFERRED = 1 << 12, 1 << 21, 512, 6


class Compaction:
    """The two scanners: blocks from the first up, free frames from the last down.

    :param mode: who has it done: "never"; "always", each first touch; "madvise", one of an area that is advised; with
        either khugepaged, too; "defer": nobody waits, it is done behind a first touch. :param unmovable: share of the
        fragmented blocks in which the frames in use, of nobody known, cannot move. :param seed: which these are.
    """

    def __init__(self, frames: PolicyFrames, mode: str, *, unmovable: float, seed: int) -> None:
        self.frames, self.mode = frames, mode
        buddy = frames.buddy
        self.nobody = {
            frame for frame in range(buddy.n)
            if buddy.free(frame) is None and (seeded(seed, frame // BLOCK << 10 | 1023) >> 11) / 2**53 >= unmovable
        }  # fmt: skip
        self.block, self.frame = 0, buddy.n
        self.deferred = self.shift = 0

    def waits(self, *, touch: bool, advised: bool) -> bool:
        """Whether who asks for 2 MB waits for a compaction."""
        return (
            self.mode == "always"
            or (self.mode == "madvise" and (advised or not touch))
            or (self.mode == "defer" and not touch)
        )

    def put_off(self) -> bool:
        """After failures some are not tried."""
        self.deferred = min(self.deferred + 1, 1 << self.shift)
        return self.deferred < 1 << self.shift

    def users(self, guest: Guest) -> dict[int, list[tuple[int, int, Page]]]:
        """Of each frame that pages of 4 KB alone map: process, address, page."""
        found, whole = defaultdict[int, list[tuple[int, int, "Page"]]](list), set[int]()
        base = self.frames.base
        for process, space in sorted(guest.spaces.items()):
            for la, page in space.small.items():
                found[(page.frame - base) // SMALL].append((process, la, page))
            for page in space.large.values():
                first = (page.frame - base) // SMALL
                whole.update(range(first, first + BLOCK))
        return {frame: pages for frame, pages in found.items() if frame not in whole}

    def compact(self, guest: Guest, vcpu: int) -> bool:
        """Whether a block is free now."""
        buddy, users = self.frames.buddy, self.users(guest)
        while self.block < buddy.n // BLOCK:
            block = range(self.block * BLOCK, (self.block + 1) * BLOCK)
            used = [frame for frame in block if buddy.free(frame) is None]
            if not used or not all(frame in self.nobody or frame in users for frame in used):
                self.block += 1
                continue
            targets, at = list[int](), self.frame
            while len(targets) < len(used) and at > block.stop:
                at -= 1
                if buddy.free(at) is not None:
                    targets.append(at)
            if len(targets) < len(used):
                break
            for frame, to in zip(used, targets, strict=True):
                self.migrate(guest, vcpu, frame, to, users.get(frame, []))
            self.block, self.frame = self.block + 1, at
            self.deferred = self.shift = 0
            return True
        self.block, self.frame, self.deferred = 0, buddy.n, 0
        self.shift = min(self.shift + 1, MOST_DEFERRED)
        return False

    def migrate(self, guest: Guest, vcpu: int, frame: int, to: int, users: list[tuple[int, int, Page]]) -> None:
        """One page, for all that have it."""
        frames = self.frames
        frames.buddy.take_at(to, 0)
        for process, _, page in users:
            guest.cpus.shoot(vcpu, process, 1, False)
            page.frame = frames.base + to * SMALL
        if frame in self.nobody:
            self.nobody.remove(frame)
            self.nobody.add(to)
        old, new = frames.base + frame * SMALL, frames.base + to * SMALL
        frames.sharers[new] = frames.sharers.pop(old, 0)
        frames.buddy.give(frame, 0)
        guest.cpus.count(vcpu, "pgmigrate_success")
