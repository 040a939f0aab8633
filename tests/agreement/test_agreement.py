"""The machine does what real KVM did, exit for exit: recordings of FASTMMU_KVM_EXITS, else the sample."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastmmu import ConfigError, MemorySlot
from tests.agreement.__main__ import main
from tests.agreement.compare import Verdict, compare, description
from tests.agreement.configurations import configuration
from tests.agreement.guest import Guest
from tests.agreement.matrix import combinations, compared, different
from tests.agreement.recorded import Recording, data_directories, recordings, sample_directory


def _cases() -> list[tuple[Recording, str]]:
    found = recordings(*data_directories()) or recordings(sample_directory())
    return [(r, name) for r in found if description(r.guest) is not None for name in r.results]


@pytest.mark.parametrize(("recording", "name"), [pytest.param(r, n, id=f"{r.path.stem}-{n}") for r, n in _cases()])
def test_exits_and_dirty_logs_are_those_of_kvm(recording: Recording, name: str) -> None:
    guest = description(recording.guest)
    assert guest is not None
    verdicts = list(compare(recording, name, guest))
    assert len(verdicts) == len(recording.results[name]) > 0
    assert [v for v in verdicts if not v.equal] == []


def _of_guest_a() -> list[Any]:
    """Two of the sample; with FASTMMU_EXHAUSTIVE=1 all."""
    cases = [(r, n) for r, n in _cases() if r.guest == "A"]
    if not os.environ.get("FASTMMU_EXHAUSTIVE"):
        cases = [(r, n) for r, n in cases if r.vendor == "intel" and n in ("shadow_nopre", "eptN_thp")]
    return [pytest.param(r, n, id=f"{r.path.stem}-{n}") for r, n in cases]


@pytest.mark.parametrize(("recording", "name"), _of_guest_a())
def test_the_specification_does_what_kvm_did(recording: Recording, name: str) -> None:
    """Exits, dirty logs, leaves, KVM's own statistics; and two numbers that were changed are found."""
    guest = description("A")
    assert guest is not None
    phases = json.loads(json.dumps(recording.results[name]))
    phases["9"]["exits"]["IO_INSTRUCTION"] += 1
    if "stat_deltas" in phases["10"]:
        phases["10"]["stat_deltas"]["pf_spurious"] = 5
    else:
        phases["10"]["exits"]["IO_INSTRUCTION"] += 1
    other = dataclasses.replace(recording, results={name: phases})
    verdicts = list(compare(other, name, guest, specified=True))
    assert [v.phase for v in verdicts if not v.equal] == ["9", "10"]
    assert [v.phase for v in verdicts if not v.pages_equal] == []


def _changed(vendor: str, name: str, change: Callable[[dict[str, Any]], None]) -> list[Verdict]:
    recording = next(r for r in recordings(sample_directory()) if r.vendor == vendor and name in r.results)
    guest = description("A")
    assert guest is not None
    phases = json.loads(json.dumps(recording.results[name]))
    change(phases)
    return [v for v in compare(dataclasses.replace(recording, results={name: phases}), name, guest) if not v.equal]


def test_statistics_details_and_pages_are_compared() -> None:
    def change(phases: dict[str, Any]) -> None:
        phases["20"]["stat_deltas"]["tlb_flush"] += 1
        phases["21"]["exit_info1"]["PML_FULL"] = {"0x1": 1}  # not one of those compared
        phases["37"]["exit_info1"]["EPT_VIOLATION"]["0x584"] += 1
        phases["38"]["gauges_after"]["pages_4k"] += 1

    different = _changed("intel", "eptY_4k", change)
    assert [(v.phase, v.statistics, v.details) for v in different] == [
        ("20", {"tlb_flush": (2, 1)}, {}),
        ("37", {}, {"EPT_VIOLATION 0x584": (2, 1)}),
        ("38", {}, {}),
    ]


def test_error_codes_of_nested_faults_are_compared() -> None:
    def change(phases: dict[str, Any]) -> None:
        phases["19"]["page_fault_error_codes"]["0x200000007"] -= 1
        phases["32"]["stat_deltas"]["insn_emulation"] = 0

    different = _changed("amd", "tdpN_4k", change)
    assert [(v.phase, v.statistics, v.details) for v in different] == [
        ("19", {}, {"0x200000007": (4, 5)}),
        ("32", {"insn_emulation": (0, 32)}, {}),
    ]


def test_another_mechanism_shows(capsys: pytest.CaptureFixture[str]) -> None:
    # the recording of one configuration against the machine of another: the comparison can fail
    recording = next(r for r in recordings(sample_directory()) if r.vendor == "intel")
    guest = description("A")
    assert guest is not None
    other = Recording(
        recording.path,
        recording.vendor,
        "A",
        recording.phases,
        {},
        "bochs",
        {"eptY_noad_4k": recording.results["eptY_4k"]},
    )
    different = [v.phase for v in compare(other, "eptY_noad_4k", guest) if not v.equal]
    assert {"19", "24"} <= set(different)
    assert not set(different) & {"3", "4", "10", "32"}


def test_the_order_of_exits_and_the_interrupts_are_compared() -> None:
    recording = next(r for r in recordings(sample_directory()) if "eptY_noapicv_4kC" in r.results)
    guest = description("C")
    assert guest is not None
    phases = recording.results["eptY_noapicv_4kC"]
    changed = json.loads(json.dumps(phases))
    changed["16"]["exit_sequence"][0], changed["16"]["exit_sequence"][1] = changed["16"]["exit_sequence"][1::-1]
    changed["24"]["guest_irq_log"].reverse()
    changed["2"]["exits"]["APIC_ACCESS"] = 1
    other = dataclasses.replace(recording, results={"eptY_noapicv_4kC": changed})
    assert [v.phase for v in compare(other, "eptY_noapicv_4kC", guest) if not v.equal] == ["2", "16", "24"]
    # and the machine of another configuration differs where it should
    flexpriority = dataclasses.replace(recording, parameters={}, results={"eptY_noflex_4kC": phases})
    different = [v.phase for v in compare(flexpriority, "eptY_noflex_4kC", guest) if not v.equal]
    assert {"2", "3", "6", "16"} <= set(different)
    assert not set(different) & {"4", "5", "7", "13"}


def test_the_command_says_how_many(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(sample_directory()), "--guest", "A", "--only", "eptY_4k"]) == 0
    out = capsys.readouterr().out
    assert out.endswith("kvm-agreement: 42 of 42 phases equal\n")
    assert "PML_FULL=1  ours" in out
    assert "518 [32+1 256+5 4096+512]" in out


def test_parameters_that_an_older_kvm_does_not_have() -> None:
    given = {"kvm_intel.ept": "Y", "kvm_intel.enable_apicv": "N", "kvm_intel.flexpriority": "Y", "kvm.tdp_mmu": "Y"}
    older = configuration("eptY_thp", "intel", given, "bochs", (5, 10))
    assert older.config.kvm == "5.10"
    assert not older.config.eager_page_split
    assert not older.config.pml
    assert older.config.tdp_mmu
    assert older.config.mmio_caching
    assert [slot.emulated for slot in older.slots] == [False]  # the APIC's page, without APICv
    assert [slot.emulated for slot in configuration("eptY_noapicv_thp", "intel").slots] == [True]
    assert not configuration("eptY_thp", "intel", {"kvm_intel.ept": "Y"}).config.tdp_mmu
    amd = configuration("nptY_4k", "amd", {"kvm_amd.npt": "0", "kvm.tdp_mmu": "Y"}).config
    assert amd.mmu == "shadow"
    assert not amd.eager_page_split


@pytest.mark.parametrize(
    ("vendor", "name"),
    [
        ("intel", "eptY_nopml_noeager_nxhp_noapicv_thp"),
        ("amd", "shadow_nxhp_nommio_thp"),
    ],
)
def test_the_machine_does_what_is_specified_in_other_configurations(vendor: str, name: str) -> None:
    assert (vendor, name) in combinations("A")
    guest = description("A")
    assert guest is not None
    assert [text for _, text in compared(vendor, name, guest) if text] == []


def test_a_combination_that_differs_shows() -> None:
    guest = description("A")
    assert guest is not None
    LAYOUT = dataclasses.replace(guest.LAYOUT)
    runner = Guest(LAYOUT, configuration("eptN_thp", "intel").config)
    other = Guest(LAYOUT, configuration("eptN_nommio_thp", "intel").config)
    for each in (runner, other):
        each.on_page_fault = None
        each.read(0x1000)
        each.mark()
    assert different(runner.phases[0], runner.phases[0]) == {}
    other.phases[0].statistics["pf_fixed"] += 1
    other.phases[0].noted.update([None])
    assert {"pf_fixed", "None"} == different(runner.phases[0], other.phases[0]).keys()


@pytest.mark.parametrize(
    ("vendor", "name"),
    [("intel", "eptY_nxhp_noflex_thp"), ("intel", "shadow_nommio_4k"), ("intel", "eptN_noad_noapicv_nopre")],
)
def test_guest_c_with_a_policy_in_python_is_the_same(vendor: str, name: str) -> None:
    assert (vendor, name) in combinations("C")
    guest = description("C")
    assert guest is not None
    assert [text for _, text in compared(vendor, name, guest) if text] == []


def test_a_recording_may_bring_its_description(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((sample_directory() / "amd_a.json").read_text())
    content |= {"workload_name": "Q", "results": {"nptN_4k": content["results"]["tdpN_4k"]}}
    (tmp_path / "amd_q.json").write_text(json.dumps(content))
    assert main(["--data", str(tmp_path)]) == 1
    assert "Write guest_q.py" in capsys.readouterr().out
    text = (Path(__file__).parents[1] / "agreement" / "guest_a.py").read_text()
    (tmp_path / "guest_q.py").write_text(text.replace("from .guest", "from tests.agreement.guest"))
    assert main(["--data", str(tmp_path)]) == 0
    assert capsys.readouterr().out.endswith("kvm-agreement: 42 of 42 phases equal\n")


def test_parameters_decide_not_names() -> None:
    given = {"kvm_intel.ept": "N", "kvm.tdp_mmu": "Y", "kvm_intel.enable_apicv": "Y", "kvm_intel.flexpriority": "N"}
    odd = configuration("apicv_noflex_nommiocache_thp", "intel", given)
    assert odd == configuration("eptY_noapicv_thpB", "intel", given)
    assert (odd.config.mmu, odd.config.tpr, odd.config.apic_access_page) == ("shadow", "apicv", False)
    assert (odd.slots, odd.not_modelled) == ((), ())
    assert configuration("eptY_4k", "intel", given, tpr_shadow=False).config.tpr == "trap"
    kernels = {(5, 10): "5.10", (5, 19): "5.10", (6, 1): "6.1", (6, 6): "6.1", (6, 12): "6.12", (7, 0): "6.12"}
    assert {kernel: configuration("eptY_4k", "intel", kernel=kernel).config.kvm for kernel in kernels} == kernels
    assert configuration("eptY_4k", "intel", kernel=(4, 19)).not_modelled == ("Linux=4.19",)
    more = {"kvm_amd.avic": "Y", "kvm.other": "1", "kvm_amd.nested": "1"}
    assert configuration("nptY_4k", "amd", more).not_modelled == ("kvm_amd.avic=Y", "kvm.other=1")


def test_what_is_not_modelled_is_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((sample_directory() / "amd_a.json").read_text())
    content["results"] = {"one_4k": content["results"]["tdpN_4k"]}
    content["module_parameters"] = {"one_4k": {"kvm_amd.avic": "Y", "kvm.tdp_mmu": "N"}}
    for number, avic in enumerate("YN"):
        content["module_parameters"]["one_4k"]["kvm_amd.avic"] = avic
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "amd_a.json").write_text(json.dumps(content))
    assert main(["--data", os.pathsep.join(str(tmp_path / str(number)) for number in (0, 1))]) == 0
    out = capsys.readouterr().out
    assert "  0 not modelled: kvm_amd.avic=Y" in out
    assert "not modelled: kvm_amd.avic=Y (42 phases, not compared)" in out
    assert out.endswith("kvm-agreement: 42 of 42 phases equal\n")


def test_names_of_configurations() -> None:
    assert configuration("eptY_noflex_4k", "intel").slots == ()
    assert configuration("eptY_4k", "intel").slots == (MemorySlot(0xFEE0_0000, 0x1000, private=True),)
    assert configuration("eptN_thpB", "intel").config.backing == "2m"
    assert not configuration("eptY_nopml_4k", "intel").config.pml
    assert configuration("eptY_4k", "intel", {"kvm_intel.pml": "N"}).config.pml is False
    assert configuration("nptN_thp", "amd").config == configuration("tdpN_thp", "amd").config
    assert configuration("eptY_noeager_nommio_thp", "intel").config.eager_page_split is False
    for name, part in {"eptY_xyz_4k": "xyz", "ept_4k": "'ept'", "eptY_1g": "backing", "eptN_8k_4k": "8k"}.items():
        with pytest.raises(ValueError, match=f"{part}.*configurations.py"):
            configuration(name, "intel")
    with pytest.raises(ConfigError, match="pml"):
        configuration("eptY_4k", "intel").config.replace(vendor="amd")
