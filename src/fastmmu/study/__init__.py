"""Named experiments over the simulator, a room each: `study/<name>/`.

    compare      one trace under several schemes
    consolidate  programs on the CPUs of one host (`fastmmu host`)
    replay       a system trace in all schemes
    sweep        whatever a study.toml describes, resumed where it was left, here or on a cluster
    named        experiments of the literature, a TOML each, ours beside what was published (`fastmmu study`)
    migrate      live migration, by method of dirty logging
    overcommit   hosts short of memory
    boot         a guest that changes its paging mode
    curve        misses of TLBs of every size, from one pass (`fastmmu tlb-curve`)
    vpid         what VPID is worth
    shootdown    what TLB shootdowns cost, by method and number of vCPUs
    tpr          ways of handling the TPR
    kvm_log      a log of real KVM, its page faults under other policies (`fastmmu kvm-log`)

    study/<name>/__init__   public names; COMMAND, HELP and PLACE of the command
                 run        the experiment: yields results one by one
                 table      rows of results for files, a table, a picture (of `compare`: report.comparison)
                 command    the options, and what puts run and table together
    schemes      the named configurations of all of them

Imports all rooms; nothing imports it, but `fastmmu` for its public names, and `cli.commands`, which looks what
folders there are.

To add a study: a folder with these four files, its configurations in `schemes`, a test in tests/study. No list names
it; only for `from fastmmu.study import ...` its public names stand below.
"""

from __future__ import annotations

from fastmmu._lazy import lazy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastmmu.machine.side_by_side import each
    from fastmmu.study.compare.run import SCHEMES, compare, configurations
    from fastmmu.study.consolidate.run import Consolidation, consolidate
    from fastmmu.study.curve.run import Curve, Curves, tlb_curve
    from fastmmu.study.kvm_log.run import ReplayedFaults, replay_faults
    from fastmmu.study.named.description import experiments
    from fastmmu.study.named.run import named_study
    from fastmmu.study.shootdown.run import ShootdownPoint, shootdown_study
    from fastmmu.study.sweep.run import Study
    from fastmmu.study.tpr.run import WAYS, tpr_study
    from fastmmu.study.vpid.run import VpidPoint, vpid_experiment
    from fastmmu.trace.survey import Survey, survey

__all__ = [
    "SCHEMES",
    "WAYS",
    "Consolidation",
    "Curve",
    "Curves",
    "ReplayedFaults",
    "ShootdownPoint",
    "Study",
    "Survey",
    "VpidPoint",
    "compare",
    "configurations",
    "consolidate",
    "each",
    "experiments",
    "named_study",
    "replay_faults",
    "shootdown_study",
    "survey",
    "tlb_curve",
    "tpr_study",
    "vpid_experiment",
]

_HOMES = {
    "fastmmu.machine.side_by_side": ("each",),
    "fastmmu.study.compare.run": ("SCHEMES", "compare", "configurations"),
    "fastmmu.study.consolidate.run": ("Consolidation", "consolidate"),
    "fastmmu.study.curve.run": ("Curve", "Curves", "tlb_curve"),
    "fastmmu.study.kvm_log.run": ("ReplayedFaults", "replay_faults"),
    "fastmmu.trace.survey": ("Survey", "survey"),
    "fastmmu.study.named.description": ("experiments",),
    "fastmmu.study.named.run": ("named_study",),
    "fastmmu.study.shootdown.run": ("ShootdownPoint", "shootdown_study"),
    "fastmmu.study.sweep.run": ("Study",),
    "fastmmu.study.tpr.run": ("WAYS", "tpr_study"),
    "fastmmu.study.vpid.run": ("VpidPoint", "vpid_experiment"),
}

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(__name__, _HOMES)
