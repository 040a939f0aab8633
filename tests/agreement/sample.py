"""Reduce recordings to the sample that the project carries: `python -m tests.agreement.sample DIRECTORY`.

A configuration of each mechanism stays, and of each phase what is compared: exits, the dirty log, pages mapped.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from .compare import description
from .recorded import recordings, sample_directory

KEEP = {
    "intel": (
        *("eptY_4k", "eptN_thp", "eptY_nopml_4k", "shadow_nopre"),
        *("eptY_4kC", "shadow_noflex_4kC", "eptY_noapicv_4kC", "eptY_notprshadow_4kC"),
    ),
    "amd": ("tdpN_4k", "shadow_4k"),
}
COMPARED = (
    *("exits", "dirty_log_after_phase", "gauges_after", "exit_sequence", "guest_irq_log"),
    *("stat_deltas", "host_interrupt_exits", "exit_info1", "page_fault_error_codes"),
)


def main() -> None:
    for recording in recordings(Path(sys.argv[1])):
        if description(recording.guest) is None:
            continue
        content = json.loads(recording.path.read_text())
        names = [name for name in content["results"] if name in KEEP[recording.vendor]]
        content["results"] = {
            name: {
                number: {key: phase[key] for key in COMPARED if key in phase}
                for number, phase in content["results"][name].items()
            }
            for name in names
        }
        if "module_parameters" in content:
            content["module_parameters"] = {name: content["module_parameters"][name] for name in names}
        text = json.dumps(content, separators=(",", ":")).replace('},"', '},\n"')
        (sample_directory() / recording.path.name).write_text(text + "\n")


if __name__ == "__main__":
    main()
