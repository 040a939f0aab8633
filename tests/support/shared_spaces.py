"""Programs whose vCPUs share an address space, in every scheme."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastmmu import Config, Host
from fastmmu.ops import Op

__all__ = ["SCHEMES", "Step", "run_steps"]

Step = tuple[int, Op | str, int]
"""vCPU, operation or "idle", address."""

_SMALL = Config(memory="256M", tlb="strict", find_missing_flushes=True)
SCHEMES: dict[str, Config] = {
    "native": _SMALL,
    "native, PCIDs": _SMALL.replace(pcid=True),
    "native, INVLPGB": _SMALL.replace(shootdown="invlpgb"),
}


def _add(name: str, **fields: Any) -> None:
    SCHEMES[name] = _SMALL.replace(**fields)


for vmm in ("kernel", "python"):
    of = "" if vmm == "kernel" else ", VMM in Python"
    for vpid in (False, True):
        tagged = f"{of}, VPID" if vpid else of
        _add(f"shadow in sync{tagged}", mmu="shadow", vpid=vpid, vmm=vmm)
        _add(f"shadow 6.1{tagged}", mmu="shadow", kvm="6.1", vpid=vpid, vmm=vmm)
        _add(f"EPT{tagged}", mmu="ept", kvm="6.1", vpid=vpid, vmm=vmm)
        _add(f"EPT, older MMU{tagged}", mmu="ept", kvm="6.1", vpid=vpid, tdp_mmu=False, vmm=vmm)
    _add(f"EPT, VPID, PV{of}", mmu="ept", kvm="6.1", vpid=True, shootdown="pv", vmm=vmm)
    _add(f"EPT, PV{of}", mmu="ept", kvm="6.1", shootdown="pv", vmm=vmm)
    _add(f"EPT, VPID, PV, PCIDs{of}", mmu="ept", kvm="6.1", vpid=True, shootdown="pv", pcid=True, vmm=vmm)
    _add(f"shadow 6.1, VPID, PV{of}", mmu="shadow", kvm="6.1", vpid=True, shootdown="pv", vmm=vmm)
    _add(f"shadow 6.1, PV, PCIDs{of}", mmu="shadow", kvm="6.1", shootdown="pv", pcid=True, vmm=vmm)
    _add(f"NPT{of}", mmu="ept", kvm="6.1", vendor="amd", vmm=vmm)
    _add(f"NPT, PV{of}", mmu="ept", kvm="6.1", vendor="amd", shootdown="pv", vmm=vmm)
    _add(f"NPT, INVLPGB{of}", mmu="ept", kvm="6.1", vendor="amd", shootdown="invlpgb", vmm=vmm)
    _add(f"NPT, INVLPGB, PCIDs{of}", mmu="ept", kvm="6.1", vendor="amd", shootdown="invlpgb", pcid=True, vmm=vmm)
for way in ("trap", "flexpriority", "apicv"):
    _add(f"EPT, VPID, {way}", mmu="ept", kvm="6.1", vpid=True, tpr=way)
    _add(f"shadow 6.1, VPID, PV, {way}", mmu="shadow", kvm="6.1", vpid=True, shootdown="pv", tpr=way)
_add("EPT, VPID, lazy mode off", mmu="ept", kvm="6.1", vpid=True, lazy_tlb=False)


def run_steps(
    config: Config, vcpus: int, steps: Sequence[Step], *, cpus: int | None = None, omit: Sequence[str] = ()
) -> tuple[list[int], Host]:
    """Steps one by one; vCPU i runs on CPU i modulo `cpus`, as many as vCPUs where it is None (natively always).

    :returns: guest-physical address of each access, and the host.
    """
    cpus = vcpus if cpus is None or config.mmu == "native" else cpus
    host, out, came = Host([(config, vcpus)], cpus=cpus, omit=omit), np.zeros(1, np.uint64), []
    for i, (vcpu, op, addr) in enumerate(steps):
        if op == "idle":
            host.idle(vcpu)
            continue
        columns = np.array([op], np.uint8), np.array([8], np.uint8), np.array([addr], np.uint64)
        host.run(vcpu, vcpu % cpus, *columns, out, i)
        if op <= Op.FETCH:
            came.append(int(out[0]))
    return came, host
