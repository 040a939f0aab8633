"""Control fields of VMCSs, some of which no processor enters with."""

from __future__ import annotations

import random

__all__ = ["random_entry"]


def random_entry(chance: random.Random) -> dict[str, int]:
    def sparse(bits: int, weight: int) -> int:
        return sum(1 << chance.randrange(bits) for _ in range(chance.randrange(weight + 1))) & (1 << bits) - 1

    def page() -> int:
        return chance.getrandbits(32) << 12 | chance.choice([0] * 8 + [0x40, 1]) | chance.choice([0] * 8 + [1 << 50])

    fields = {
        "pin_based": chance.choice([0, 1, 1]) | sparse(8, 2),
        "primary": 1 << 31 | chance.choice([0, 1 << 21]) | sparse(32, 2),
    }
    fields |= {"secondary": sparse(28, 3), "tertiary": sparse(6, 1), "vm_exit": chance.choice([0, 1 << 15])}
    fields |= {
        "vm_entry": chance.choice([0, 1 << 9, 3 << 14, 1 << 9 | 3 << 14]),
        "cr3_target_count": chance.randrange(6),
    }
    fields |= {"vpid": chance.choice([0, 7]), "posted_vector": chance.choice([0x20, 0x1F2])}
    fields |= {"guest_interrupt_status": chance.getrandbits(16), "tpr_threshold": chance.choice([0, 3, 7, 0x13])}
    fields |= {"vm_functions": chance.choice([0, 1, 2]), "eptp": page() | chance.choice([0x1E, 0x5E, 0x26, 6])}
    names = ["virtual_apic_address", "apic_access_address", "posted_descriptor_address", "eptp_list_address"]
    return fields | {name: page() for name in [*names, "pml_address", "ve_information_address", "sppt_pointer"]}
