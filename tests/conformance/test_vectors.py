"""Vectors recorded from another machine, through every implementation; and that the comparison can fail."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.conformance import vectors
from tests.conformance.adapters import adapters
from tests.conformance.cases import Adapter, Case, Observed, WalkCase
from tests.conformance.spec import SpecAdapter

SAMPLES = vectors.sets(vectors.sample_directory())
FULL = vectors.sets(vectors.data_directory())


@pytest.fixture(params=adapters(batch=True), ids=lambda adapter: adapter.name)
def adapter(request: pytest.FixtureRequest) -> Adapter:
    chosen: Adapter = request.param
    return chosen


def check(adapter: Adapter, path: Path, stride: int = 1) -> None:
    report = vectors.run_set(adapter, path, stride=stride)
    print(report.line())
    assert report.compared + report.not_compared.total() > 0
    assert report.mismatches == 0, "\n".join(report.examples)


def test_the_sample_has_every_kind_of_set() -> None:
    assert {path.name[:2] for path in SAMPLES} == {"a_", "b_", "c_"}


@pytest.mark.parametrize("path", SAMPLES, ids=vectors.set_name)
def test_sample(adapter: Adapter, path: Path) -> None:
    check(adapter, path)


@pytest.mark.skipif(not FULL, reason=f"skipped: no vectors in {vectors.data_directory().name}; set FASTMMU_VECTORS")
@pytest.mark.parametrize("path", FULL, ids=vectors.set_name)
def test_slice_of_the_full_set(adapter: Adapter, path: Path) -> None:
    check(adapter, path, stride=vectors.slice_stride(path))


# ---- the comparison itself -----------------------------------------------------------------------------------


class Wrong:
    """An implementation that is right but for one field."""

    name = "wrong"
    unreported: frozenset[str] = frozenset()

    def __init__(self, field: str) -> None:
        self.field = field

    def run(self, case: Case) -> Observed | str:
        seen = SpecAdapter().run(case)
        assert isinstance(seen, dict)
        if self.field in seen:
            value = seen[self.field]
            seen[self.field] = {**value, 0x7000: 1} if isinstance(value, dict) else "?" if value == "ok" else value
            if isinstance(value, int):
                seen[self.field] = value ^ 2
        return seen


@pytest.mark.parametrize(
    "field", ["k", "pa", "gps", "eps", "mt", "emt", "ipat", "ec", "cr2", "q", "gpa", "gla", "pmli", "ch"]
)
def test_a_wrong_field_is_a_mismatch(field: str) -> None:
    path = next(path for path in SAMPLES if path.name.startswith("c_nested_4level"))
    report = vectors.run_set(Wrong(field), path)
    assert report.mismatches > 0
    assert field in report.examples[0]


def test_a_wrong_eptp_validity_is_a_mismatch() -> None:
    path = next(path for path in SAMPLES if path.name.startswith("b_eptp_valid"))
    report = vectors.run_set(Wrong("valid"), path)
    assert report.mismatches == report.compared > 0


def test_masks_hide_bit_0_and_nothing_else() -> None:
    assert all(mask.bits == 1 for mask in vectors.MASKS)
    masked = 0
    for path in SAMPLES:
        for v in vectors.read(path):
            want = vectors.expected(v)
            if want.get("k") != "ev":
                continue
            _, names = vectors.compare(v, {**want, "q": want["q"] ^ 1})
            differences, _ = vectors.compare(v, {**want, "q": want["q"] ^ 2})
            assert differences, "bit 1 is never masked"
            masked += bool(names)
            assert not names or v["acc"] in ("rw", "w") or "guest_ad_ept_ro" in v.get("dev", ())
    assert masked > 0


def test_the_sets_need_the_lazy_knob() -> None:
    """With upper A flags set eagerly a faulting walk leaves other memory behind: the recorded machine is lazy."""

    class Eager(SpecAdapter):
        def run(self, case: Case) -> Observed | str:
            if isinstance(case, WalkCase):
                case = dataclasses.replace(case, state=dataclasses.replace(case.state, upper_a="eager"))
            return super().run(case)

    for path in SAMPLES:
        if path.name.startswith(("a_4level", "c_nested_4level")):
            assert vectors.run_set(Eager(), path).mismatches > 0


def test_a_broken_line_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "a_broken.jsonl"
    path.write_text('{"i": 0}\n{"i": 1\n')
    with pytest.raises(ValueError, match=r"a_broken\.jsonl, line 2"):
        list(vectors.read(path))
