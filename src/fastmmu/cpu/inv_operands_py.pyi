from typing import Final, Literal

from fastmmu.exits import Completion

EPT_VPID_CAP: Final[int]

def check_invalidation(
    instruction: Literal["invept", "invvpid", "invpcid"] | str,
    type: int,
    descriptor: tuple[int, int],
    *,
    caps: int = ...,
    mode: Literal["real", "v86", "protected", "compatibility", "64-bit"] | str = "64-bit",
    vmx: Literal["off", "root", "non-root"] | str = "root",
    cpl: int = 0,
    maxphyaddr: int = 52,
    la_bits: int = 48,
    pcide: bool = True,
    current_vmcs: bool = True,
    invpcid: bool = True,
    enable_invpcid: bool = True,
    invlpg_exiting: bool = False,
) -> Completion: ...
