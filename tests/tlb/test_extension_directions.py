"""Each extension does on made-up tables what its paper says it does."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from fastmmu import Config, Machine, Op, Trace, simulate
from fastmmu.reference.tlb.tlb import value
from fastmmu.tlb.geometry import geometry
from fastmmu.tlb.tlb import TLB

PAGES = 2048
Array = npt.NDArray[np.uint64]


def walks(extension: str, frames: npt.NDArray[np.int64], pages: npt.NDArray[np.int64]) -> tuple[int, int]:
    """Walks that accesses to these pages wait for, and prefetches; page i lies in frame frames[i]. 64 entries below."""
    tlb = TLB(geometry("skylake", l1d="16/4", stlb="64/4", extension=extension))
    values = [value(int(frame) << 12) for frame in frames]
    if extension != "none":
        at = np.arange(len(frames), dtype=np.uint64) << np.uint64(12)
        tlb.query_pages(at, np.array(values, np.uint64), frames.astype(np.uint64) << np.uint64(12))
    missed = 0
    for page in pages.tolist():
        if not tlb.lookup(page << 12)[0]:
            missed += 1
            tlb.fill(page << 12, values[page])
    return missed, tlb.counters().get("extensions", {}).get("prefetch", {}).get("prefetch_walks", 0)


RNG = np.random.default_rng(1)
IN_ORDER = np.arange(PAGES) + 4096
SHUFFLED = RNG.permutation(PAGES) + 4096
IN_GROUPS = (np.arange(PAGES) & ~7) + RNG.permuted(np.tile(np.arange(8), (PAGES // 8, 1)), axis=1).ravel() + 4096
UNIFORM = RNG.integers(0, PAGES, 12_000)
SCAN = np.tile(np.arange(PAGES), 3)
STEPS = np.cumsum(np.tile([5, 17, 3], 2000)) % PAGES  # a pattern of distances
IRREGULAR = np.tile(RNG.permutation(PAGES)[:512], 8)  # the same order, again and again


@pytest.mark.parametrize("extension", ["clustered:8", "coalesced:8", "range:32"])
def test_contiguous_frames_are_worth_it_and_shuffled_ones_are_not(extension: str) -> None:
    alone, _ = walks("none", IN_ORDER, UNIFORM)
    assert walks(extension, IN_ORDER, UNIFORM)[0] < alone / 4
    assert walks(extension, SHUFFLED, UNIFORM)[0] > alone * 0.95


def test_clusters_need_no_order_of_frames_and_runs_do() -> None:
    """What clustering adds to coalescing (Pham et al. 2014)."""
    alone, _ = walks("none", IN_GROUPS, UNIFORM)
    assert walks("clustered:8", IN_GROUPS, UNIFORM)[0] < alone / 4
    assert walks("coalesced:8", IN_GROUPS, UNIFORM)[0] > alone / 2


def test_a_range_reaches_further_than_a_cluster() -> None:
    assert walks("range:4", IN_ORDER, UNIFORM)[0] < walks("clustered:8:32/4", IN_ORDER, UNIFORM)[0] / 4


def test_the_next_page_helps_a_scan_and_nothing_else() -> None:
    scanned, _ = walks("none", SHUFFLED, SCAN)
    assert walks("prefetch:sequential", SHUFFLED, SCAN)[0] < scanned / 100
    alone, _ = walks("none", SHUFFLED, UNIFORM)
    missed, prefetched = walks("prefetch:sequential", SHUFFLED, UNIFORM)
    assert missed > alone * 0.98
    assert prefetched > alone * 0.8  # for nothing


def test_distances_help_where_they_repeat() -> None:
    """Strides of a pattern, which the next page does not help (Kandiraju and Sivasubramaniam 2002)."""
    alone, _ = walks("none", SHUFFLED, STEPS)
    assert walks("prefetch:distance", SHUFFLED, STEPS)[0] < alone / 10
    assert walks("prefetch:sequential", SHUFFLED, STEPS)[0] > alone * 0.9


def test_recency_helps_what_is_irregular_and_comes_again() -> None:
    """Where there is no distance that repeats (Saulsbury et al. 2000)."""
    alone, _ = walks("none", SHUFFLED, IRREGULAR)
    assert walks("prefetch:recency", SHUFFLED, IRREGULAR)[0] < alone * 0.7
    assert walks("prefetch:distance", SHUFFLED, IRREGULAR)[0] > alone * 0.8


@pytest.mark.parametrize(("mmu", "fewer"), [("native", 0), ("ept", 1)])
def test_a_tlb_in_memory_replaces_references_of_walks(mmu: str, fewer: int) -> None:
    """Of a walk over EPT more than it costs; natively it replaces walks (Ryoo et al. 2017)."""
    page = RNG.integers(0, 4096, 60_000).astype(np.uint64)
    trace = Trace.from_arrays(page * 4096 + 0x10_0000_0000, np.full(len(page), Op.READ, np.uint8))
    config = Config(mmu=mmu, vpid=mmu == "ept", stlb="64/4", walk_caches=False)
    alone, with_it = simulate(trace, config), simulate(trace, config.replace(tlb_extension="pom:16m"))
    refs = [run.counters["guest_walk_refs"] + run.counters["ept_walk_refs"] for run in (alone, with_it)]
    memory = with_it.tlb["extensions"]["pom"]["memory_refs"]
    assert with_it.counters["walks"] < alone.counters["walks"] / 2
    assert refs[1] < refs[0] / 2
    assert not fewer or refs[1] + memory < refs[0] * 0.6


@pytest.mark.parametrize("caches", [None, "skylake l1d=1k/2 l1i=1k/2 l2=4k/4 l3=16k/4 inclusion=neither"])
def test_a_tlb_in_memory_costs_less_than_nested_walks(caches: str | None) -> None:
    """Of a footprint that neither TLB nor caches hold (Ryoo et al. 2017); one that the TLB holds costs the same."""
    rng = np.random.default_rng(2)
    for pages, share in ((8192, 0.8), (32, 1)):
        page = np.concatenate([np.arange(pages), rng.integers(0, pages, 60_000)]).astype(np.uint64)
        trace = Trace.from_arrays(page * 4096 + 0x10_0000_0000, np.full(len(page), Op.READ, np.uint8))
        config = Config(mmu="ept", vpid=True, stlb="64/4", walk_caches=False, caches=caches)
        alone, with_it = (
            simulate(trace, config.replace(tlb_extension=one), warm_up=pages) for one in (None, "pom:16m")
        )
        assert with_it.walk_cycles + with_it.cycles_by.get("extensions", 0) <= share * alone.walk_cycles
        assert share == 1 or with_it.cycles_by["extensions"] > 0


# ---- arrays for pages of all sizes ----------------------------------------------------------------------------

M = 1 << 21
SPREAD = np.arange(96) * (M + 4096)  # of 4 KB, each in 2 MB of its own
LARGE = np.arange(112) * M


def looked_up(pages: npt.NDArray[np.int64], size: str, n: int = 4000, frames: Array | None = None, **shape: str) -> TLB:
    """A TLB after accesses to these pages by chance, each of which was filled before."""
    tlb = TLB(geometry("skylake", l1d="4/4 + 2m 4/4", **shape))
    frames = pages.astype(np.uint64) if frames is None else frames
    values = [value(int(frame), size) for frame in frames]
    if "extension" in shape:
        tlb.query_pages(pages.astype(np.uint64), np.array(values, np.uint64), frames)
    for order in (range(len(pages)), np.random.default_rng(3).integers(0, len(pages), n).tolist()):
        tlb.reset_counters()
        for i in order:
            if not tlb.lookup(int(pages[i]))[0]:
                tlb.fill(int(pages[i]), values[i])
    return tlb


def missed(tlb: TLB) -> int:
    counted = tlb.counters()
    found: dict[str, int] = counted.get("extensions", {"hits": 0})
    return int(counted["l1d"]["misses"] - sum(counted["l2"]["hits"].values()) - found["hits"])


@pytest.mark.parametrize("extension", ["skewed:128/8", "rehash:128/8"])
@pytest.mark.parametrize(("pages", "size"), [(SPREAD, "4k"), (LARGE, "2m")], ids=["4k", "2m"])
def test_one_array_holds_more_than_its_parts_where_one_size_dominates(
    extension: str, pages: npt.NDArray[np.int64], size: str
) -> None:
    """Seznec 2004: split arrays of as many entries leave those of the other sizes empty."""
    split = looked_up(pages, size, stlb="64/8 + 2m 64/8")
    assert missed(looked_up(pages, size, stlb="none", extension=extension)) < missed(split) / 2


def test_skewing_takes_conflicts_apart() -> None:
    """Pages whose number ends alike lie in one set of an array, and in several of one whose ways have their own."""
    alike = np.arange(24) * 4096 * 16 * 1024
    plain = looked_up(alike, "4k", stlb="none", extension="rehash:128/8")
    assert missed(looked_up(alike, "4k", stlb="none", extension="skewed:128/8")) < missed(plain) / 2


def test_larger_pages_that_follow_each_other_reach_further_in_one_index() -> None:
    """Cox and Bhattacharjee 2017: a larger page is in every set, which only groups of them are worth."""
    split = missed(looked_up(LARGE, "2m", stlb="64/8 + 2m 64/8"))
    mix: dict[str, str] = {"stlb": "none", "extension": "mix:128/16"}
    together = looked_up(LARGE, "2m", **mix)
    assert missed(together) < split / 4
    assert together.counters()["extensions"]["mix"]["hits_2m"] > 3000
    frames = np.random.default_rng(4).permutation(LARGE).astype(np.uint64)
    assert missed(looked_up(LARGE, "2m", frames=frames, **mix)) > split
    assert missed(looked_up(SPREAD, "4k", **mix)) < missed(looked_up(SPREAD, "4k", stlb="64/8 + 2m 64/8")) / 2


def test_a_predicted_order_reads_less() -> None:
    """Papadopoulou et al. 2015; and MIX and skewed ways read once, whatever the sizes."""
    reads = {}
    for extension in ("rehash:128/8", "rehash:128/8:ascending", "mix:128/8", "skewed:128/8"):
        tlb = TLB(geometry("skylake", l1d="4/4 + 2m 4/4", stlb="none", extension=extension))
        rng = np.random.default_rng(5)
        for i in rng.integers(0, 40, 4000).tolist():
            at, size = (i * M, "2m") if i < 32 else ((1 << 32) + i * M, "4k")
            if not tlb.lookup(at)[0]:
                tlb.fill(at, value(at, size))
        one = tlb.counters()["extensions"][extension.partition(":")[0]]
        reads[extension] = one["reads"] / one["lookups"]
        assert one["hits_2m"] > one["hits_4k"] > 0
    assert reads["rehash:128/8"] < 1.1 < 1.7 < reads["rehash:128/8:ascending"]
    assert reads["mix:128/8"] == reads["skewed:128/8"] == 1


# ---- prefetchers that know the instruction, and the page ------------------------------------------------------

CODE, DATA = 0x40_0000, 0x10_0000_0000


def streams(fetches: bool) -> Trace:
    """Two instructions, each with a stride of its own, in an order by chance."""
    at, addr, op = [0, 4096], [], []
    for which in np.random.default_rng(6).integers(0, 2, 20_000).tolist():
        at[which] = which * 4096 + (at[which] + (7, 11)[which]) % 1024
        addr += [CODE + 64 * which, DATA + at[which] * 4096]
        op += [Op.FETCH, Op.READ]
    keep = slice(None) if fetches else slice(1, None, 2)
    return Trace.from_arrays(np.array(addr, np.uint64)[keep], np.array(op, np.uint8)[keep])


def walked(trace: Trace, n: int, extension: str) -> int:
    config = Config(stlb="64/4", tlb_extension=extension)
    return int(simulate(trace, config, warm_up=n // 2).counters["walks"])


def test_strides_of_an_instruction_are_predicted() -> None:
    """ASP of Kandiraju and Sivasubramaniam 2002, which needs to know which instruction it is."""
    (coded, n), (uncoded, m) = (streams(True), 40_000), (streams(False), 20_000)
    assert walked(coded, n, "prefetch:stride") < walked(coded, n, "none") / 10
    assert walked(uncoded, m, "prefetch:stride") > walked(uncoded, m, "none") / 2
    assert walked(coded, n, "prefetch:sequential") > walked(coded, n, "none") * 0.9


def test_chunks_do_not_matter_to_what_is_known_of_instructions() -> None:
    """The last fetch may be of the batch before."""
    trace = streams(True)
    batch = next(iter(trace.batches()))
    found = []
    for step in (len(batch), 1, 7):
        machine = Machine(Config(stlb="64/4", tlb_extension="prefetch:stride"))
        for i in range(0, 6000, step):
            part = slice(i, min(i + step, 6000))
            machine.run(batch.op[part], batch.size[part], batch.addr[part])
        found.append(machine.tlb.counters()["extensions"])
    assert found[0] == found[1] == found[2]
    assert found[0]["prefetch"]["hits"] > 0


def test_pages_that_follow_a_page_again_are_predicted() -> None:
    """MP of the same paper: an order without any distance that repeats, of as many pages as the table has rows."""
    order = np.tile(np.random.default_rng(7).permutation(256), 12)
    alone, _ = walks("none", SHUFFLED, order)
    assert walks("prefetch:markov", SHUFFLED, order)[0] < alone / 4
    assert walks("prefetch:distance", SHUFFLED, order)[0] > alone / 3
