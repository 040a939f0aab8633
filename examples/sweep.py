"""A study from Python: sizes of the second-level TLB, natively and over EPT, on both bundled traces.

`python examples/sweep.py FOLDER` keeps the results in FOLDER: run it twice, and the second time everything is there.
"""

from __future__ import annotations

import sys
import tempfile

from fastmmu import Config, Study

CONFIGS = [
    Config(mmu=mmu, vpid=mmu != "native", stlb=f"{entries}/8") for mmu in ("native", "ept") for entries in (256, 1024)
]


def main() -> None:
    folder = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()
    study = Study({"sqlite": "sqlite", "zstd": "zstd"}, CONFIGS, results=folder, name="stlb")
    print(f"{study.run('threads')} runs made, {len(study.missing())} missing")
    table = study.results()
    for row in table.select(["trace", "mmu", "stlb", "tlb_misses", "cycles_per_access"]).to_pylist():
        name = "{trace:8}{mmu:8}{stlb:8}".format(**row)
        print(f"    {name}{row['tlb_misses']:8,} TLB misses  {row['cycles_per_access']:.2f} cycles/access")


if __name__ == "__main__":
    main()
