"""Which frames of guest memory programs get: every policy in every scheme against the specification; fragmentation."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmmu import Config, Machine, simulate
from fastmmu.errors import ConfigError, OutOfMemoryError, StateError
from fastmmu.machine.frame_plan import recorded_runs
from fastmmu.machine.frames_py import buddyinfo, unusable_index
from fastmmu.ops import Op
from fastmmu.reference.machine import Buddy, permutation
from tests.support.event_lists import program
from tests.support.shared_programs import frames_of, on_specification, random_turns, run_turns
from tests.support.shared_spaces import SCHEMES

POLICIES = (
    "shuffled:3", "buddy:0", "buddy:0.7:1", "buddy:1:2", "reserve:32k", "reserve:2m+buddy:0.6", "contiguous",
    "contiguous+buddy:0.8:5",
)  # fmt: skip
PROGRAMS = int(os.environ.get("FASTMMU_FRAME_PROGRAMS", "2"))
policies = st.one_of(
    st.builds("shuffled:{}".format, st.integers(0, 9)),
    st.builds("buddy:{}:{}".format, st.sampled_from(["0", "0.25", "0.9", "1"]), st.integers(0, 9)),
    st.builds("reserve:{}{}".format, st.sampled_from(["32k", "64k", "256k", "2m"]), st.sampled_from(["", "+buddy:.5"])),
    st.builds("contiguous{}".format, st.sampled_from(["", "+buddy:0.5:3"])),
)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("frames", POLICIES)
def test_programs_of_several_vcpus(scheme: str, frames: str) -> None:
    for seed in range(PROGRAMS):
        pages = ("4k", "thp", "2m")[(seed + len(scheme)) % 3]
        if frames == "buddy:1:2" and pages == "2m":
            pages = "thp"
        config = SCHEMES[scheme].replace(pages=pages, thp_threshold=4, frames=frames, memory="256M")
        vcpus, cpus, turns = random_turns(seed)
        came, counters, host = run_turns(config, vcpus, cpus, turns)
        assert (came, counters) == on_specification(config, vcpus, turns), seed
        assert host.counters(0)["stale_uses"] == 0, seed


THP = (
    "always", "madvise", "never", "always+khugepaged:600/50", "madvise+khugepaged:100000/120:509",
    "always+khugepaged:1/7:510", "madvise+khugepaged:1024/20",
)  # fmt: skip


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("thp", THP)
def test_huge_pages_of_programs_of_several_vcpus(scheme: str, thp: str) -> None:
    for seed in range(PROGRAMS):
        frames = ("first-touch", *POLICIES)[(seed * 5 + len(scheme) + len(thp)) % (len(POLICIES) + 1)]
        config = SCHEMES[scheme].replace(pages="thp", thp=thp, frames=frames, memory="256M")
        vcpus, cpus, turns = random_turns(seed + len(thp), advice=True)
        came, counters, host = run_turns(config, vcpus, cpus, turns)
        assert (came, counters) == on_specification(config, vcpus, turns), (seed, frames)
        assert host.counters(0)["stale_uses"] == 0, seed


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("defrag", ["always", "madvise", "defer"])
def test_compaction_of_programs_of_several_vcpus(scheme: str, defrag: str) -> None:
    moved = 0
    for seed in range(2 * PROGRAMS):
        thp = ("always+khugepaged:2000/40", "madvise+khugepaged:3000/60", "always")[seed % 3]
        frames = ("buddy:1:3", "reserve:32k+buddy:1:4", "contiguous+buddy:1", "buddy:0.97:5")[(seed + len(scheme)) % 4]
        config = SCHEMES[scheme].replace(pages="thp", thp=thp, frames=frames, memory="64M", defrag=defrag,
                                         unmovable=(0.3, 0.0, 0.9)[seed % 3])  # fmt: skip
        vcpus, cpus, turns = random_turns(seed + len(defrag), advice=True)
        came, counters, host = run_turns(config, vcpus, cpus, turns)
        assert (came, counters) == on_specification(config, vcpus, turns), (seed, frames, thp)
        assert host.counters(0)["stale_uses"] == 0, seed
        moved += sum(counted["pgmigrate_success"] for counted in counters)
    assert moved


def touched(config: Config, addr: list[int], op: list[int] | None = None) -> tuple[list[int], Machine]:
    """Guest-physical addresses of accesses on a machine of its own."""
    machine, out = Machine(config), np.zeros(len(addr), np.uint64)
    ops = np.full(len(addr), Op.WRITE, np.uint8) if op is None else np.array(op, np.uint8)
    machine.run(ops, np.full(len(addr), 8, np.uint8), np.array(addr, np.uint64), out)
    return out.tolist(), machine


@given(policies, st.sampled_from(["4k", "2m", "thp"]), st.integers(0, 2**32), st.integers(1, 400))
@settings(max_examples=60, deadline=None)
def test_touches_and_unmaps_of_a_full_memory(frames: str, pages: str, seed: int, n: int) -> None:
    """Of 64 MB a few processes take most, and give back: each access reaches what the specification says."""
    config = Config(memory="64M", frames=frames, pages=pages, thp_threshold=3)
    random, events = np.random.default_rng(seed), list[tuple[int, int]]()
    for _ in range(n):
        kind, page = random.random(), int(random.integers(0, 512 * 16)) << 12 | 0x4000_0000
        if kind < 0.8:
            events += [(Op.WRITE, page + (i << 12)) for i in range(int(random.integers(1, 9)))]
        elif kind < 0.9:
            events.append((Op.MUNMAP, page | int(random.integers(0, 600))))
        else:
            events.append((Op.SWITCH, int(random.integers(0, 2))))
    try:
        came, counters, _ = run_turns(config, 1, 1, [(0, 0, events)])
    except OutOfMemoryError:
        with pytest.raises(AssertionError):
            on_specification(config, 1, [(0, 0, events)])
        return
    assert (came, counters) == on_specification(config, 1, [(0, 0, events)])


@pytest.mark.parametrize("text", [
    "random", "shuffled:x", "shuffled+buddy:0.5", "buddy", "buddy:2", "buddy:nan", "reserve:48k", "reserve:4m",
    "reserve:1", "reserve:64k+shuffled", "contiguous:3", "first-touch:1", "shuffled:99999999999999999999", "", None, 3,
])  # fmt: skip
def test_what_is_no_policy_is_refused(text: object) -> None:
    with pytest.raises(ConfigError, match="frames"):
        Config(frames=text)  # type: ignore[arg-type]


def test_where_no_policy_can_be() -> None:
    with pytest.raises(ConfigError, match="at most 1T"):
        Config(frames="shuffled", memory="2T")
    with pytest.raises(ConfigError, match="kernel_memory"):
        Config(frames="shuffled", kernel_memory="high")
    assert buddyinfo(Machine(Config(memory="64M"))) is None
    with pytest.raises(StateError, match="guest kernel"):
        buddyinfo(Machine(Config(memory="64M"), guest_kernel=False))


@pytest.mark.parametrize("frames", ["buddy:0.5", "reserve:2m+buddy:0.5", "contiguous+buddy:0.5"])
def test_fragmentation_is_as_asked(frames: str) -> None:
    """Within what one block of 2 MB changes: 1 / blocks."""
    for share in (0.0, 0.1, 0.37, 0.5, 0.9, 1.0):
        for memory in ("64M", "1G", "64G"):
            machine = Machine(Config(memory=memory, frames=frames.replace("0.5", f"{share}:9")))
            chunks = buddyinfo(machine)
            assert chunks is not None
            blocks = (1 << {"6": 26, "1": 30}[memory[0]] if memory != "64G" else 1 << 36) >> 21
            assert abs(unusable_index(chunks) - share) <= 1 / (blocks * 0.9), (memory, share)


def test_what_is_free_is_as_the_specification_has_it() -> None:
    for frames in POLICIES:
        config = Config(memory="64M", frames=frames)
        wanted = frames_of(config)
        assert buddyinfo(Machine(config)) == wanted.buddy.chunks()  # type: ignore[union-attr]


@given(st.integers(1, 5000), st.integers(0, 2**63 - 1))
def test_the_order_is_a_permutation(n: int, seed: int) -> None:
    order = permutation(n, seed)
    assert sorted(map(order, range(n))) == list(range(n))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.integers(0, 2047)), max_size=60), st.floats(0, 1))
def test_chunks_of_the_buddy_allocator_never_overlap(steps: list[tuple[bool, int, int]], unusable: float) -> None:
    buddy, used = Buddy(2048, unusable), dict[int, int]()
    spare = sum(n << order for order, n in enumerate(buddy.chunks()))
    for take, order, at in steps:
        if take:
            frame = buddy.take(order)
            if frame is not None:
                assert frame % (1 << order) == 0
                used[frame] = order
        elif used:
            frame = sorted(used)[at % len(used)]
            buddy.give(frame, used.pop(frame))
        chunks = [(i << order, 1 << order) for order, free in enumerate(buddy.lists) for i in free]
        chunks += [(frame, 1 << order) for frame, order in used.items()]
        frames = [i for first, n in chunks for i in range(first, first + n)]
        assert len(frames) == len(set(frames))
        assert sum(n << order for order, n in enumerate(buddy.chunks())) + sum(1 << o for o in used.values()) == spare


def lines_of_leaves(came: list[int]) -> int:
    """Cache lines of the EPT's leaf tables (4 KB pages) that walks to these guest-physical addresses read."""
    return len({gpa >> 12 >> 3 for gpa in came})


def test_what_shuffled_frames_do_to_the_ept_and_a_reservation_undoes() -> None:
    """Host PTEs of neighbours share a line where their frames are neighbours (PTEMagnet, ASPLOS 2021, figure 2): two
    processes that touch pages in turn."""
    pages, lines = 4096, dict[str, int]()
    for frames in ("first-touch", "shuffled", "buddy:0", "buddy:1", "reserve:32k", "contiguous"):
        config = Config(mmu="ept", kvm="6.1", memory="1G", frames=frames)
        op, addr = list[int](), list[int]()
        for i in range(pages):
            op += [Op.WRITE, Op.SWITCH, Op.WRITE, Op.SWITCH]
            addr += [0x4000_0000 + (i << 12), 1, 0x4000_0000 + (i << 12), 0]
        came, _ = touched(config, addr, op)
        assert len(set(came[::2])) == 2 * pages  # each page a frame of its own
        lines[frames] = lines_of_leaves(came[::4])  # of process 0 alone
    least = pages // 8
    assert lines["reserve:32k"] == lines["contiguous"] == least
    assert lines["first-touch"] == 2 * least  # interleaved with the other process
    assert lines["buddy:0"] == 2 * least
    assert lines["buddy:1"] > 3 * least
    assert lines["shuffled"] > 6 * least


def as_csv(path: Path, runs: list[tuple[int, int]]) -> str:
    """A file of pages as `fastmmu maps --csv` writes them; the policy that reads it."""
    rows, va = ["va,pa,gpa,size"], 0x1000
    for pages, frame in runs:
        rows += [f"{va + (i << 12):#x},0x0,{frame + i << 12:#x},4096" for i in range(pages)]
        va += (pages << 12) + (1 << 21)
    path.write_text("\n".join(rows) + "\n")
    return f"of:{path}"


@pytest.mark.parametrize("seed", range(6))
def test_as_the_pages_of_a_recorded_guest_lay(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.choice([1, 1, 2, 5, 40, 700], 30).tolist()
    runs = [(int(n), int(rng.integers(0, 1 << 16))) for n in lengths]
    frames = as_csv(tmp_path / "pages.csv", runs)
    assert recorded_runs(frames[3:]) == runs
    config = Config(memory="256M", frames=frames, pages=("4k", "thp")[seed % 2], thp_threshold=30)
    vcpus, _, turns = random_turns(seed)
    came, counters, _ = run_turns(config, vcpus, vcpus, turns)
    assert (came, counters) == on_specification(config, vcpus, turns)


def test_the_runs_of_a_guest_come_back(tmp_path: Path) -> None:
    """A program that touches as many pages has runs as long as the recorded ones."""
    frames = as_csv(tmp_path / "pages.csv", [(3, 100), (1, 50), (9, 2000), (700, 4096)])
    first = 713 * 1000
    came, _ = touched(Config(memory="256M", frames=frames), [(first + i) << 12 for i in range(713)])
    base = came[0] - (100 << 12)
    assert [(gpa - base) >> 12 for gpa in came] == [*range(100, 103), 50, *range(2000, 2009), *range(4096, 4796)]


@pytest.mark.parametrize("text", [None, "", "va,pa\n", "va,gpa,size\nx,y,z\n", "va,gpa,size\n0x0,0x0,12\n", "\xff"])
def test_files_that_are_none(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "pages.csv"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match="frames="):
        Machine(Config(memory="64M", frames=f"of:{path}"))


def test_a_file_without_the_columns_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "notes.csv"
    path.write_text("# notes\nva,pa\n")
    with pytest.raises(ConfigError, match="no columns va, gpa and size; give a file of fastmmu maps GUEST --csv FILE"):
        Machine(Config(memory="64M", frames=f"of:{path}"))


def test_the_hosts_frames_are_seen_by_caches_alone() -> None:
    """Counters are the same; as many references are found in other places, and walks are not shorter."""
    results = {}
    for host_frames in ("linear", "shuffled:1", "buddy:0.5"):
        config = Config(mmu="ept", kvm="6.1", memory="1G", caches="skylake", host_pages="4k", host_frames=host_frames)
        results[host_frames] = simulate(program(20_000), config)
    linear = results["linear"]
    assert linear.caches is not None
    for other in results.values():
        assert other.caches is not None
        assert other.counters == linear.counters
        assert {name: sum(n) for name, n in other.caches.references.items()} == {
            name: sum(n) for name, n in linear.caches.references.items()
        }
    with pytest.raises(ConfigError, match="caches"):
        Config(mmu="ept", host_frames="shuffled")
    with pytest.raises(ConfigError, match="host_frames"):
        Config(mmu="ept", caches="skylake", host_frames="buddy:3")
