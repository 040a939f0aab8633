"""First fit, against bytes that are each free or not."""

from __future__ import annotations

from random import Random

import pytest

from fastmmu.machine.ranges import Ranges


@pytest.mark.parametrize("seed", range(20))
def test_ranges_are_the_lowest_gaps(seed: int) -> None:
    random, size = Random(seed), 200
    ranges, free, taken = Ranges(size), "1" * size, list[tuple[int, int]]()
    refused = 0
    for _ in range(600):
        if taken and random.random() < 0.48:
            start, n = taken.pop(random.randrange(len(taken)))
            ranges.give(start, n)
            free = free[:start] + "1" * n + free[start + n :]
        else:
            n = random.randrange(1, 40)
            found, first = ranges.take(n), free.find("1" * n)
            assert found == (None if first < 0 else first)
            refused += first < 0
            if found is not None:
                taken.append((found, n))
                free = free[:found] + "0" * n + free[found + n :]
        assert ranges.free == free.count("1")
        assert ranges.largest == max(map(len, free.split("0")))
    assert refused
    for start, n in taken:
        ranges.give(start, n)
    assert ranges.take(size) == 0
    assert ranges.take(1) is None
    assert ranges.largest == 0
