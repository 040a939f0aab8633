from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fastmmu.kvm.policy.kvm import Kvm
from fastmmu.machine.machine import Machine
from fastmmu.machine.slots import MemorySlot

_Arrays = dict[str, npt.NDArray[np.generic]]

def state_of(machine: Machine) -> tuple[list[str], _Arrays]: ...
def restore(machine: Machine, names: Sequence[str], arrays: _Arrays) -> None: ...
def given_to(machine: Machine) -> tuple[bool, tuple[MemorySlot, ...]]: ...
def vmm_object(machine: Machine) -> Kvm | None: ...
