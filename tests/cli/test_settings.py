"""--config, --save-config: a saved file is the same run; what is wrong in one is told with file, key, value."""

from __future__ import annotations

import argparse
import json
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmmu import Config, ConfigError, Kvm, geometry
from fastmmu.cli import main
from fastmmu.cli.main import parser
from fastmmu.cli.run import config_of
from fastmmu.cli.settings import apply, written
from fastmmu.machine.config_fields import Fields

TRUE = Path(__file__).parents[1] / "data" / "true.lackey"


class Mine(Kvm):
    pass


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a field, by its type."""
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if get_origin(hint) is Annotated:
        least, most = (next(getattr(m, name) for m in hint.__metadata__ if getattr(m, name) is not None)
                       for name in ("ge", "le"))  # fmt: skip
        return st.one_of(st.integers(least, min(most, least + 300)), st.just(most))
    if hint is bool:
        return st.booleans()
    if hint is type(None):
        return st.none()
    return st.one_of(*map(values, get_args(hint)))


OWN: dict[str, st.SearchStrategy[Any]] = {
    "vmm": st.sampled_from(["kernel", "python", Mine]),
    "tlb": st.sampled_from(["zen2", "strict", "core2", geometry("icelake", gpm="off"), geometry("zen1", psc="2/4/32")]),
    "l1d": st.sampled_from([None, "64/4", "64/4 + 2m 32/4"]),
    "l1i": st.sampled_from([None, "128/8"]),
    "stlb": st.sampled_from([None, "none", "1024/8"]),
    "replacement": st.sampled_from([None, "plru", "random:7", "lru,srrip"]),
    "psc": st.sampled_from([None, "none", "2/4/32"]),
    "epsc": st.sampled_from([None, "64/fa", "pde 16/4"]),
    "gpm": st.sampled_from([None, "off", "32/4"]),
    "memory": st.sampled_from(["64M", "2G", 1 << 30]),
    "host_memory": st.sampled_from([None, "4M", 1 << 22]),
    "identity_map": st.sampled_from([0xFFFB_C000, 0x4000_0000]),
}
HINTS = get_type_hints(Fields, include_extras=True)
DICTS = st.fixed_dictionaries(
    {}, optional={name: OWN[name] if name in OWN else values(hint) for name, hint in HINTS.items()}
)


def parsed(*words: str) -> argparse.Namespace:
    """As the command line does it."""
    top = parser("run")
    options = top.parse_args(["run", *words])
    if options.config is not None:
        apply(options.parser, options.config)
        options = top.parse_args(["run", *words])
    return options


@settings(max_examples=int(os.environ.get("FASTMMU_EXAMPLES", "150")), deadline=None)
@given(DICTS)
def test_a_saved_configuration_is_the_same_one(
    tmp_path_factory: pytest.TempPathFactory, fields: dict[str, Any]
) -> None:
    """Over all fields of a Config."""
    try:
        config = Config(**fields)
    except ConfigError:
        return
    path = tmp_path_factory.getbasetemp() / "c.toml"
    path.write_text(written(parsed(), config))
    assert set(tomllib.loads(path.read_text())) == {"config", "options"}
    assert config_of(parsed("--config", str(path))) == config


def test_every_field_has_values_here() -> None:
    assert HINTS.keys() == set(Config.__struct_fields__)


def test_a_saved_run_is_the_same_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, again = tmp_path / "a.json", tmp_path / "b.json"
    line = f"run {TRUE} --mmu ept --vpid --tlb zen2 --kvm 6.1 --warm-up 20 --data-only --generation skylake --memory 2G"
    assert main([*line.split(), "--save-config", str(tmp_path / "c.toml"), "--json", str(first)]) == 0
    assert main(["run", "--config", str(tmp_path / "c.toml"), "--json", str(again)]) == 0
    one, other = (json.loads(path.read_text())["results"][0] for path in (first, again))
    assert {**one, "seconds": 0} == {**other, "seconds": 0}
    line = f"compare {TRUE} --schemes shadow,ept --pages 4k,thp --kvm 6.1,6.12 --no-walk-caches"
    assert main([*line.split(), "--save-config", str(tmp_path / "c.toml")]) == 0
    capsys.readouterr()
    assert main(["compare", "--config", str(tmp_path / "c.toml"), "--json", "-"]) == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    assert {row["config"]["pages"] for row in rows} == {"4k", "thp"}
    assert {row["config"]["kvm"] for row in rows} == {"6.1", "6.12"}
    assert not any(row["config"]["walk_caches"] for row in rows)


def test_the_command_line_wins(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        '[config]\nmmu = "ept"\ntlb = "zen2"\nept_ad = false\nmemory = 2147483648\nwalk_caches = true\n'
        '[options]\nlimit = "10k"\nwarm-up = 5\n'
    )
    options = parsed("--config", str(tmp_path / "c.toml"), "--mmu", "shadow", "--tlb", "core2", "--no-walk-caches")
    config = config_of(options)
    assert (config.mmu, config.tlb, config.ept_ad, config.walk_caches) == ("shadow", "core2", False, False)
    assert config.memory_bytes == 2 << 30
    assert (options.limit, options.warm_up) == (10_000, 5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mmu =", "no TOML"),
        ("\xff", "no such key"),
        ('mmu = "ept"', "mmu: no such key; there are config, options"),
        ("[confg]", "confg: no such key; did you mean config?"),
        ("config = 5", "config = 5: no table"),
        ('[config]\nmmu = "epd"', "config.mmu = \"epd\": choose from 'native', 'shadow', 'ept'"),
        ('[config]\nmnu = "ept"', "config.mnu: no such key; did you mean mmu?"),
        ("[config]\nvpid = 1", "config.vpid = 1"),
        ('[config]\nexit_every = "often"', 'config.exit_every = "often"'),
        ("[config]\nexit_log = -1", "config.exit_log = -1"),
        ('[config]\ntlb = "zen9"', 'config.tlb = "zen9"'),
        ("[config]\ntlb = { name = 5 }", "config.tlb = { name = 5 }"),
        ('[config]\nmemory = "much"', 'config.memory = "much"'),
        ('[config]\nvmm = "no.such:Thing"', 'config.vmm = "no.such:Thing"'),
        ("[config]\nvmm = 5", "config.vmm = 5: give kernel, python or MODULE:CLASS"),
        ('[config]\nmmu = "native"\npml = true', "pml=True needs"),
        ("[options]\nlimit = 0", "options.limit = 0"),
        ("[options]\nlimit = true", "options.limit = true"),
        ('[options]\ntraces = "a"', "options.traces = \"a\": give a list"),
        ('[options]\nformat = "tape"', "options.format = \"tape\": choose from"),
        ('[options]\ndata-only = "yes"', "options.data-only = \"yes\": give true or false"),
        ("[options]\njson = 1", "options.json: no such key"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file(text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text, encoding="utf-8")
    assert main(["run", str(TRUE), "--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    if text != "\xff":
        assert said in error
    if "pml" not in text:
        assert str(path) in error


def test_files_that_cannot_be_had(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(TRUE), "--config", str(tmp_path / "none")]) == 2
    assert main(["run", str(TRUE), "--save-config", str(tmp_path / "no" / "c")]) == 2
    (tmp_path / "c.toml").write_text('[config]\nmmu = "ept"\n')
    assert main(["compare", str(TRUE), "--config", str(tmp_path / "c.toml")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3
    assert "compare runs schemes" in errors[2]
