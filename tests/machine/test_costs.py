"""The cost model: its file, its errors, and the sum over the counters."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmmu.errors import ConfigError
from fastmmu.exits import ExitReason
from fastmmu.machine.config import Config
from fastmmu.machine.costs import CLASSES, CostModel, cycles, exits_by_class
from fastmmu.machine.simulate import simulate
from fastmmu.ops import Op
from fastmmu.trace import Trace


@pytest.fixture
def costs() -> CostModel:
    return CostModel.load()


def test_defaults_of_the_spec(costs: CostModel) -> None:
    trips = {name: processor.round_trip for name, processor in costs.generation.items()}
    assert trips["prescott"] == 3963
    assert trips["merom"] == 1579
    assert trips["penryn"] == 1266
    assert trips["nehalem"] == 1009
    assert trips["westmere"] == 761
    assert trips["sandybridge"] == 784
    lightest = {name: CostModel.load(generation=name).exit_cost("cpuid") for name in costs.generation}
    assert lightest["skylake"] == 1200  # including KVM's light path (vmx.md §7)
    assert lightest["skylake-mitigated"] == 2000
    assert lightest["icelake"] == 1300
    memory = costs.memory
    assert (costs.tlb.stlb_hit, memory.l1d, memory.l2, memory.l3, memory.dram) == (7, 4, 14, 44, 200)  # tlb.md §9


def test_every_value_says_where_it_comes_from() -> None:
    lines = (files("fastmmu.machine") / "costs.toml").read_text().splitlines()
    values = [line for line in lines if "=" in line.split("#")[0]]
    assert len(values) > 70
    assert [line for line in values if not line.partition("#")[2].strip()] == []


def test_a_file_changes_only_what_it_names(tmp_path: Path, costs: CostModel) -> None:
    path = tmp_path / "mine.toml"
    mine = "[generation.mine]\nround_trip = 1\nvmread = 2\nvmwrite = 3\n[dispatch]\nwbinvd = 9\n"
    path.write_text(f'[exit]\ngeneration = "mine"\n{mine}')
    model = CostModel.load(path)
    assert model.exit_cost("wbinvd") == 1 + 5 * 2 + 1 * 3 + 450 + 9
    assert (model.guest, model.walk, model.generation["merom"]) == (costs.guest, costs.walk, costs.generation["merom"])
    assert CostModel.load(path, generation="merom").exit.generation == "merom"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[exit]\npath = -1", "exit.path = -1; give a number >= 0"),
        ("[exit]\npaht = 1", "unknown key exit.paht; did you mean path?"),
        ("[exits]\npath = 1", "unknown key exits; did you mean exit?"),
        ("exit = 3", "exit is a section, not 3"),
        ("[walk.guest]\nl1d = 0.9", "walk.guest: the shares l1d, l2, l3, dram sum to 1.65; make them sum to 1"),
        ("[walk.ept]\nl1d = 1.5", "walk.ept.l1d = 1.5; give a share, 0..1"),
        ("[memory]\nl2 = 'near'", "memory.l2 = 'near'; give a number >= 0"),
        ("[memory]\nl2 = true", "memory.l2 = True; give a number >= 0"),
        ("[memory]\ndram = nan", "memory.dram = nan"),
        ("[memory]\ndram = inf", "memory.dram = inf"),
        ("[exit]\ngeneration = 'i486'", "no processor 'i486'; there are prescott, merom"),
        ("[exit]\ngeneration = 5", "exit.generation"),
        ("[generation.x]\nround_trip = 3", "generation.x: Object missing required field `vmread`"),
        ("[generation.x]\nround_trip = -3", "generation.x.round_trip = -3"),
        ("[dispatch]\nfoo = 1", "unknown key dispatch.foo; known here: pf_fixed"),
        ("[memory\n", "no TOML: Expected ']'"),
    ],
)
def test_errors_name_file_key_and_remedy(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        CostModel.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert says in str(caught.value)


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary: no text in UTF-8 .* at byte 0"):
        CostModel.load(tmp_path / "binary")
    with pytest.raises(FileNotFoundError):
        CostModel.load(tmp_path / "absent")


def test_the_sum_by_hand(costs: CostModel) -> None:
    counters = {
        "accesses": 1000, "kernel_accesses": 50, "stlb_hits": 10, "guest_walk_refs": 100, "ept_walk_refs": 200,
        "ad_writes": 3, "guest_faults": 2, "cr3_switches": 1, "invlpgs": 1, "unmaps": 1, "interrupts": 1,
        "invvpid": 2, "invept": 1, "vm_exits": 9, "pf_fixed": 4, "pf_guest": 2,
        "exits_by_reason": {"exception_nmi": 7, "cpuid": 2},
    }  # fmt: skip
    parts = cycles(counters, Config(mmu="shadow"), costs)
    assert parts == pytest.approx({
        "accesses": 1000, "kernel": 50, "stlb": 70, "guest_walk": 100 * (1 + 6.3 + 11.44 + 8), "ept_walk": 200 * 11.2,
        "ad_writes": 300, "guest_faults": 2000, "context_switches": 2000, "invlpgs": 300, "interrupts": 1500,
        "exit:pf_fixed": 4 * (1200 + 2500), "exit:pf_guest": 2 * (1200 + 1200), "exit:exception_nmi": 1200 + 1200,
        "exit:cpuid": 2 * 1200, "flushes": 450,
    })  # fmt: skip


def test_native_has_no_exits(costs: CostModel) -> None:
    counters = {"accesses": 7, "exits_by_reason": {"cpuid": 2}, "invvpid": 1, "exit_instructions": 2}
    assert cycles(counters, Config(mmu="native"), costs) == {"accesses": 7.0, "exit_instructions": 200.0}
    assert "exit_instructions" not in cycles(counters, Config(mmu="ept"), costs)


REASONS = st.sampled_from([reason.name.lower() for reason in ExitReason])
NUMBERS = st.integers(0, 1 << 40)
CLASS_NAMES = sorted({name for classes in CLASSES.values() for name in classes})


@given(st.dictionaries(REASONS, NUMBERS), st.dictionaries(st.sampled_from(CLASS_NAMES), NUMBERS))
def test_classes_partition_the_exits(reasons: dict[str, int], classes: dict[str, int]) -> None:
    found = exits_by_class({**classes, "exits_by_reason": reasons})
    assert sum(found.values()) == sum(reasons.values())
    assert all(found.values())
    parts = cycles({**classes, "exits_by_reason": reasons}, Config(mmu="ept"), CostModel.load())
    assert {cause.removeprefix("exit:") for cause in parts} == set(found)


@pytest.mark.parametrize("config", [Config(mmu="shadow"), Config(mmu="ept", vpid=True), Config(mmu="ept", pages="thp")])
def test_every_exit_of_a_run_has_its_class(config: Config) -> None:
    random = np.random.default_rng(3)
    addr = random.integers(0, 3000, 4000, dtype=np.uint64) * 4096
    op = random.choice([Op.READ, Op.WRITE, Op.UNMAP, Op.SWITCH, Op.INTERRUPT], 4000, p=[0.5, 0.4, 0.06, 0.02, 0.02])
    addr[op == Op.SWITCH] %= 3
    addr[op == Op.INTERRUPT] %= 256
    counters = simulate(Trace.from_arrays(addr, op.astype(np.uint8)), config).counters
    found = exits_by_class(counters)
    assert sum(found.values()) == counters["vm_exits"] > 50
    assert not set(CLASSES) & set(found)
