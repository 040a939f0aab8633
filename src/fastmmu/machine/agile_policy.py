"""The policy of agile paging as a text: `Config(agile="writes=2 interval=4096 back=written begin=shadow")`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from fastmmu._arguments import shown
from fastmmu.errors import ConfigError

if TYPE_CHECKING:
    from fastmmu.machine.config_fields import Fields

__all__ = ["AgilePolicy", "agile_policy", "refuse_agile"]


class AgilePolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a table of the guest's is moved to nested mode, and back to shadow mode (agile.md §4).

    writes: so many in an interval move it. interval: in walks of the processor; 0: none ends. back: as an interval ends
    those go back that were not ``"written"`` in it, ``"all"``, or ``"never"``. begin: the mode of a new address space.
    """

    writes: int = 2
    interval: int = 4096
    back: Literal["written", "all", "never"] = "written"
    begin: Literal["shadow", "nested"] = "shadow"

    def __str__(self) -> str:
        return f"writes={self.writes} interval={self.interval} back={self.back} begin={self.begin}"


_RANGES = {"writes": (1, 255), "interval": (0, 1 << 40)}


def agile_policy(said: str | None) -> AgilePolicy:
    """The policy of a text of NAME=VALUE, parted by blanks or commas; what it does not name is the default's.

    :raises ConfigError: it is none.
    """
    if said is None:
        return AgilePolicy()
    found: dict[str, int | str] = {}
    for part in said.replace(",", " ").split():
        name, equals, value = part.partition("=")
        if not equals or name not in AgilePolicy.__struct_fields__ or name in found:
            raise ConfigError(f"agile={shown(said)}: {shown(part)}: give each once, as in {AgilePolicy()}")
        if name not in _RANGES:
            found[name] = value
            continue
        low, high = _RANGES[name]
        if not value.isascii() or not value.isdigit() or len(value) > 18 or not low <= int(value) <= high:
            raise ConfigError(f"agile={shown(said)}: {name}={value}: give a number in {low}..{high}")
        found[name] = int(value)
    try:
        return msgspec.convert(found, AgilePolicy)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f'agile={shown(said)}: back is "written", "all" or "never", begin "shadow" or "nested"'
        ) from error


_ALONE = {
    "vendor": "intel",
    "vmm": "kernel",
    "unsync": None,
    "ept_ad": True,
    "pml": False,
    "nx_huge_pages": False,
    "host_memory": None,
    "host_thp": None,
    "noncoherent_dma": False,
    "table_pages": 0,
    "tlb_extension": None,
    "tpr": None,
}
"""Of agile paging: what these fields have to be."""


def refuse_agile(config: Fields) -> None:
    """Fields that do not go with agile paging.

    :raises ConfigError: one of them, or a policy that is none.
    """
    agile_policy(config.agile)
    if config.mmu != "agile":
        return
    for name, value in _ALONE.items():
        if getattr(config, name) != value and not (name == "unsync" and config.unsync is False):
            raise ConfigError(
                f'mmu="agile" does not go with {name}={shown(getattr(config, name))}; leave {name} as it is, or use '
                'mmu="ept" or "shadow"'
            )
    if config.host_pages == "untouched":
        raise ConfigError('mmu="agile" does not go with host_pages="untouched"; give "4k" or "2m"')
