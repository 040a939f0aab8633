"""The table of KVM's versions: what it says, and that everything goes by it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastmmu import Config, ConfigError
from fastmmu.kvm_versions import KVM_VERSIONS, KvmRules, kvm_rule, kvm_rules

ROOT = Path(__file__).parents[2]


def test_each_rule_has_its_versions_and_its_source() -> None:
    for name in KvmRules._fields:
        rule = kvm_rule(name)
        assert rule.until is None or rule.since < rule.until
        assert rule.what
        assert re.search(r"; (kvm_policy|tlb|apic)\.md §\d", rule.source), name


def test_a_version_is_a_row() -> None:
    assert list(KVM_VERSIONS) == ["slides", "5.10", "6.1", "6.12"]
    rows = {name: kvm_rules(name) for name in KVM_VERSIONS}
    assert len(set(rows.values())) == len(rows)
    assert not any(rows["slides"])
    new = {after: [n for n in KvmRules._fields if getattr(rows[after], n) and not getattr(rows[before], n)]
           for before, after in zip(list(rows)[1:], list(rows)[2:], strict=False)}  # fmt: skip
    assert new["6.12"] == ["invlpg_syncs_entry", "nx_own_tables"]
    assert {"prefetch_last_run", "apic_page_with_apicv", "eager_page_split", "collapse_by_size"} <= set(new["6.1"])
    assert rows["6.1"].apic_load_retried
    assert not rows["6.12"].apic_load_retried


@pytest.mark.parametrize("version", KVM_VERSIONS)
def test_a_configuration_has_the_rules_of_its_version(version: str) -> None:
    assert Config(kvm=version).rules == kvm_rules(version)  # type: ignore[arg-type]


def test_no_kernel_goes_by_the_name_of_a_version() -> None:
    """Rules alone: what a version is stands in one place."""
    source = ROOT / "src" / "fastmmu"
    for path in [*source.rglob("*.pyx"), *source.rglob("*.pxd"), *(source / "kvm" / "policy").glob("*.py")]:
        assert not re.search(r'config\.kvm|\bkvm ==|"6\.1"', path.read_text()), path


def test_another_version_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"kvm='6.2'.*'slides', '5.10', '6.1', '6.12'"):
        Config(kvm="6.2")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kvm", "tpr", "page", "stands"),
    [
        ("slides", "flexpriority", None, "mapped"),
        ("5.10", "flexpriority", None, "mapped"),
        ("6.1", "flexpriority", None, "emulated"),
        ("6.12", "flexpriority", True, "mapped"),
        ("6.1", "flexpriority", False, "none"),
        ("6.1", "apicv", None, "mapped"),
        ("6.1", "apicv", False, "none"),
        ("6.1", "trap", None, "none"),
        ("6.1", None, None, "none"),
    ],
)
def test_what_stands_at_the_page_of_the_apic(kvm: str, tpr: str | None, page: bool | None, stands: str) -> None:
    config = Config(mmu="ept", memory="1G", kvm=kvm, tpr=tpr, apic_access_page=page)  # type: ignore[arg-type]
    assert config.apic_page == stands


@pytest.mark.parametrize("tpr", ["flexpriority", "apicv"])
def test_of_amd_what_is_not_modelled_is_refused(tpr: str) -> None:
    with pytest.raises(ConfigError, match=f"vendor=\"amd\" with tpr='{tpr}'.*trap"):
        Config(mmu="ept", memory="1G", vendor="amd", tpr=tpr)  # type: ignore[arg-type]
