from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fastmmu.arch.memtype_py import Mtrrs
from fastmmu.errors import Code
from fastmmu.ops import AccessName

class Mode(Code):
    NONE = 0
    BITS_32 = 1
    PAE = 2
    LEVEL_4 = 3
    LEVEL_5 = 4

class GuestState:
    registers: Mapping[str, Any]
    cr0: int
    cr3: int
    cr4: int
    efer: int
    cpl: int
    ac: int
    pkru: int
    pkrs: int
    implicit: bool
    maxphyaddr: int
    page1gb: bool
    pse36: int
    pdptes: tuple[int, int, int, int] | None
    upper_a: Literal["eager", "lazy"]
    pat: int
    mtrrs: Mtrrs
    def __init__(
        self,
        *,
        cr0: int = ...,
        cr3: int = 0,
        cr4: int = ...,
        efer: int = ...,
        cpl: int = 0,
        ac: int = 0,
        pkru: int = 0,
        pkrs: int = 0,
        implicit: bool = False,
        maxphyaddr: int = 52,
        page1gb: bool = True,
        pse36: int | None = None,
        pdptes: Sequence[int] | None = None,
        upper_a: Literal["eager", "lazy"] = "eager",
        pat: int = ...,
        mtrrs: Mtrrs | None = None,
    ) -> None: ...
    def replace(
        self,
        *,
        cr0: int = ...,
        cr3: int = ...,
        cr4: int = ...,
        efer: int = ...,
        cpl: int = ...,
        ac: int = ...,
        pkru: int = ...,
        pkrs: int = ...,
        implicit: bool = ...,
        maxphyaddr: int = ...,
        page1gb: bool = ...,
        pse36: int | None = ...,
        pdptes: Sequence[int] | None = ...,
        upper_a: Literal["eager", "lazy"] = ...,
        pat: int = ...,
        mtrrs: Mtrrs | None = ...,
    ) -> GuestState: ...
    @property
    def mode(self) -> Mode: ...

class Pml:
    base: int
    index: int
    def __init__(self, base: int, index: int = 511) -> None: ...

class SecondLevel:
    value: int
    pml: Pml | None
    options: Mapping[str, Any]

class Npt(SecondLevel):
    def __init__(
        self,
        value: int,
        *,
        levels: int = 4,
        maxphyaddr: int = 52,
        nxe: bool = True,
        page1gb: bool = True,
        pat: int = ...,
        ad_before_final: bool = True,
    ) -> None: ...

class Eptp(SecondLevel):
    def __init__(
        self,
        value: int,
        *,
        maxphyaddr: int = 52,
        execute_only: bool = True,
        mbec: bool = False,
        page1gb: bool = True,
        advanced_info: bool = True,
        ad_before_final: bool = True,
        guest_ad_checked: bool = True,
        pml: Pml | None = None,
        spptp: int | None = None,
        apic_access: int | None = None,
    ) -> None: ...

def eptp_fault(value: int, maxphyaddr: int = 52, ad_supported: bool = True, five_levels: bool = True) -> str: ...
def access_code(access: AccessName) -> int: ...
