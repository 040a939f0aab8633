"""What a curve in two parts costs, step by step, beside one pass: CPU time, which others on the machine do not change.

python -m bench.curve_parts
"""

from __future__ import annotations

import pickle
import time

import numpy as np

from fastmmu import Trace, geometry, read_trace
from fastmmu.study.curve.parts import Numbers, _Firsts, counted_part, filtered_part, piece
from fastmmu.study.curve.run import L1_SETS, L2_SETS, _Plan
from fastmmu.trace import bundled
from tests.support.phases import Phases

EVENTS = 16_000_000


def in_memory(trace: Trace, times: int = 1) -> Trace:
    """The same in arrays, several times."""
    batches = list(trace.batches())
    addr, op, size = (
        np.tile(np.concatenate([getattr(batch, name) for batch in batches]), times) for name in ("addr", "op", "size")
    )
    return Trace.from_arrays(addr, op, size)


def main(name: str, trace: Trace) -> None:
    plan = _Plan(geometry("skylake"), "4k", (L1_SETS, L2_SETS), 32)
    levels = tuple((tuple(sets), depth) for sets, depth in plan.levels)
    numbers = Numbers(levels, tuple(plan.ports), 12, False, 1 << 17, 1 << 32)
    halves = [list(piece(trace, first, first + EVENTS // 2)) for first in (0, EVENTS // 2)]
    times = [time.process_time()]

    def took() -> float:
        times.append(time.process_time())
        return times[-1] - times[-2]

    whole = counted_part(numbers, [batch for half in halves for batch in half], None)
    one = took()
    firsts = _Firsts(numbers)
    firsts.behind(filtered_part(numbers.filters(), halves[0], 0), None)
    first_levels = took()
    found = counted_part(numbers, halves[0], None)
    a = took()
    part = counted_part(numbers, halves[1], firsts.start(), EVENTS // 2)
    b = took()
    left = part.left()
    found.follow(left)
    merge = took()
    for level in range(len(levels)):
        assert (found.of_tree(level) == whole.of_tree(level)).all()
        assert found.pages(level) == whole.pages(level)
    longest = max(first_levels + b, a) + merge
    print(
        f"{name}: one pass {one:.2f} s; first levels {first_levels:.3f}, halves {a:.2f} and {b:.2f}, merging "
        f"{merge:.3f}; in all {(first_levels + a + b + merge) / one:.2f} of one pass, on two processors "
        f"{2 * one / (first_levels + a + b + merge):.2f} times as fast if halves were equal, {one / longest:.2f} as "
        f"they are; {len(pickle.dumps(left)) / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    for _ in range(2):
        main("zstd, four times", in_memory(read_trace(bundled()["zstd"]), 4))
        main("phases", in_memory(Phases(EVENTS, length=EVENTS // 4)))
