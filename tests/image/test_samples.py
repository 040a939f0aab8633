"""Images that QEMU, makedumpfile and others wrote of one guest: what each maps is what the guest mapped."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastmmu.cli import main
from fastmmu.image import open_image
from tests.files import folder, images

pytest.importorskip("cramjam", reason="cramjam of the extra 'images' is not installed")
pytest.importorskip("zstandard", reason="zstandard of the extra 'zstd' is not installed")

SAMPLE = Path(__file__).parents[1] / "data" / "images"
ALL = folder() / "images"


@pytest.mark.parametrize("place", [SAMPLE, ALL], ids=["sample", "all"])
def test_every_file_is_right(place: Path) -> None:
    if not (place / "expected.json").exists():
        pytest.skip(f"skipped: there is no {place}; FASTMMU_FILES names the folder")
    found = list(images.results(place))
    assert len(found) > 10
    assert [result for result in found if not result.right] == []


def test_a_wrong_answer_is_seen(tmp_path: Path) -> None:
    text = (SAMPLE / "expected.json").read_text()
    (tmp_path / "lime.zst").write_bytes((SAMPLE / "lime.zst").read_bytes())
    for old, new in (
        ('"pa": "0x100406000"', '"pa": "0x100407000"'),
        ('"flags": "X-P----UW"', '"flags": "--P----UW"'),
        ('"mappings_of_cr3_0x100000000": 115', '"mappings_of_cr3_0x100000000": 114'),
        ('"leaves_2m": 1024', '"leaves_2m": 1023'),
    ):
        assert old in text
        (tmp_path / "expected.json").write_text(text.replace(old, new))
        (result,) = images.results(tmp_path)
        assert not result.right
    (tmp_path / "expected.json").write_text(text)
    (tmp_path / "gva2gpa.json").write_text("[[1048576, 1048576], [1048577, 5]]")
    (result,) = images.results(tmp_path)
    assert result.text == "100001 leads to 100001, not 5"


def test_the_command_needs_no_option(capsys: pytest.CaptureFixture[str]) -> None:
    for name, said in (
        ("qemu_core.elf", "an ELF core; registers by QEMU's notes"),
        ("kdump_zlib", "a kdump; registers by QEMU's notes"),
        ("windows_bitmap.dmp", "a Windows crash dump; registers by DirectoryTableBase"),
    ):
        assert main(["maps", str(SAMPLE / f"{name}.zst")]) == 0
        out = capsys.readouterr().out
        assert out.startswith(said)
        assert "115 pages in 69 ranges" in out
    assert main(["walk", "--memory", str(SAMPLE / "qemu_core.elf.zst"), "--va", "7f1234569008", "--set-ad"]) == 0
    assert "host-physical 100_a008\n" in capsys.readouterr().out


def test_what_the_options_say_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    core = str(SAMPLE / "qemu_core.elf.zst")
    assert main(["maps", core, "--cr3", "101000"]) == 0
    assert "1,024 pages in 2 ranges\n" in capsys.readouterr().out
    for words, match in (
        (["--cpu", "1"], "no registers of CPU 1"),
        (["--machine", "q35"], "says itself where memory lies"),
        (["--machine", "pc", "--format", "raw"], "none of i440fx"),
    ):
        assert main(["maps", core, *words]) == 2
        assert match in capsys.readouterr().err
    for words in (["--format", "raw"], ["--cpu", "0"], ["--machine", "q35"], ["--map", "0=0:1000"]):
        assert main(["maps", str(SAMPLE.parent / "guests" / "pae_user"), *words]) == 2
        assert f"{words[0]} is for files" in capsys.readouterr().err
    assert main(["maps", str(SAMPLE / "lime.zst")]) == 2
    assert "needs --cr3 too" in capsys.readouterr().err


def test_writes_change_no_file() -> None:
    before = (SAMPLE / "lime.zst").read_bytes()
    memory = open_image(SAMPLE / "lime.zst", writable=True).memory
    memory.write64(0x2000, 5)
    assert memory.read64(0x2000) == 5
    assert (SAMPLE / "lime.zst").read_bytes() == before
