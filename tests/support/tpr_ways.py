"""The ways to handle the TPR, as configurations of a machine."""

from __future__ import annotations

from typing import Any

__all__ = ["HOST_WAYS", "WAYS"]

WAYS: dict[str, dict[str, Any]] = {
    "native": {"mmu": "native", "tpr": "trap"},
    "trap": {"mmu": "ept", "tpr": "trap"},
    "trap, no shadow": {"mmu": "ept", "tpr": "trap", "tpr_shadow": False},
    "trap, shadow paging": {"mmu": "shadow", "tpr": "trap"},
    "patch": {"mmu": "ept", "tpr": "patch"},
    "patch, vCPU 3": {"mmu": "shadow", "tpr": "patch", "apic_id": 3},
    "patch, one vCPU": {"mmu": "ept", "tpr": "patch", "tpr_patch": "one-vcpu"},
    "flexpriority": {"mmu": "ept", "tpr": "flexpriority"},
    "flexpriority, slides": {"mmu": "ept", "tpr": "flexpriority", "tpr_threshold": "slides"},
    "flexpriority, shadow paging": {"mmu": "shadow", "tpr": "flexpriority", "vpid": True},
    "apicv": {"mmu": "ept", "tpr": "apicv", "vpid": True},
    "apicv, shadow paging": {"mmu": "shadow", "tpr": "apicv"},
}
HOST_WAYS: dict[str, dict[str, Any]] = {
    "trap": {"mmu": "ept", "tpr": "trap"},
    "trap, no shadow": {"mmu": "ept", "tpr": "trap", "tpr_shadow": False},
    "trap, shadow paging": {"mmu": "shadow", "tpr": "trap"},
    "patch": {"mmu": "ept", "tpr": "patch"},
    "patch, shadow paging": {"mmu": "shadow", "tpr": "patch"},
    "patch, one vCPU": {"mmu": "ept", "tpr": "patch", "tpr_patch": "one-vcpu"},
    "flexpriority": {"mmu": "ept", "tpr": "flexpriority"},
    "flexpriority, slides": {"mmu": "ept", "tpr": "flexpriority", "tpr_threshold": "slides"},
    "flexpriority, shadow paging": {"mmu": "shadow", "tpr": "flexpriority", "vpid": True, "kvm": "6.1"},
    "apicv": {"mmu": "ept", "tpr": "apicv", "vpid": True, "kvm": "6.1"},
    "apicv, shadow paging": {"mmu": "shadow", "tpr": "apicv"},
}
"""Of a host: without those that know one vCPU only."""
