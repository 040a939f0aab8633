"""Builds the Cython kernels: every src/fastmmu/**/*.pyx becomes an extension module. Metadata is in pyproject.toml.

Environment: FASTMMU_NATIVE=1 compiles for this processor only; FASTMMU_CFLAGS replaces "-O3 -g0" (for a debugger:
"-O0 -g"); FASTMMU_ANNOTATE=1 writes Cython's annotated HTML beside the generated C in build/cython; FASTMMU_JOBS=N
translates and compiles N extensions at a time. A change of any of the flags rebuilds.
"""

from __future__ import annotations

import os
from pathlib import Path

import Cython
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
SRC = Path("src")
OUT = Path("build")

# tests/project/test_annotate.py compiles the kernels under the same directives.
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "initializedcheck": False,
    "cdivision": True,
    "embedsignature": True,
}


JOBS = int(os.environ.get("FASTMMU_JOBS", "1"))
FLAGS = os.environ.get("FASTMMU_CFLAGS", "-O3 -g0").split()
if os.environ.get("FASTMMU_NATIVE") == "1":
    FLAGS.append("-march=native")
SETTINGS = repr((Cython.__version__, DIRECTIVES, FLAGS))


def kernels() -> list[Extension]:
    sources = sorted(path.relative_to(ROOT) for path in (ROOT / SRC).rglob("*.pyx"))
    return [
        Extension(".".join(source.relative_to(SRC).with_suffix("").parts), [str(source)], extra_compile_args=FLAGS)
        for source in sources
    ]


class BuildKernels(build_ext):
    """Translates to C when extensions are really built (so that `sdist` needs no C), under build/."""

    def finalize_options(self) -> None:
        super().finalize_options()
        if self.editable_mode:  # setuptools would build in a temporary directory, everything anew each time
            self.build_temp = self.build_lib = str(OUT / "editable")

    def run(self) -> None:
        stamp = Path(self.build_temp) / "settings"
        self.force = self.force or not stamp.exists() or stamp.read_text() != SETTINGS
        made = cythonize(
            self.extensions,
            build_dir=str(OUT / "cython"),
            include_path=[str(SRC)],
            compiler_directives=DIRECTIVES,
            annotate=os.environ.get("FASTMMU_ANNOTATE") == "1",
            force=self.force,
            nthreads=JOBS if JOBS > 1 else 0,
            quiet=True,
        )
        by_name = {extension.name: extension for extension in made}
        for extension in self.extensions:
            vars(extension).update(vars(by_name[extension.name]))
        super().run()
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.write_text(SETTINGS)


if __name__ == "__main__":
    setup(
        ext_modules=kernels(),
        cmdclass={"build_ext": BuildKernels},
        options={"build_ext": {"parallel": JOBS}},
    )
