"""Builds the Cython kernels: every src/fastmmu/**/*.pyx becomes an extension module. Metadata is in pyproject.toml.

Environment: FASTMMU_NATIVE=1 compiles for this processor only; FASTMMU_CFLAGS replaces all flags of the compiler (for a
debugger: "-O0 -g"); FASTMMU_ANNOTATE=1 writes Cython's annotated HTML beside the generated C in build/cython;
FASTMMU_JOBS=N translates and compiles N extensions at a time (else as many as there are processors);
FASTMMU_LIMITED_API=1 makes modules and wheel of the stable ABI, for CPython 3.11 and all later ones: the same kernels,
but calls from Python into short functions take up to twice as long; FASTMMU_CHECKS=1 asserts at every change of an
entry of the VMM's tables what mmu/rmap.pyx says of it, and ends the process where that is not kept (`make
check-invariants`). A change of any of the flags rebuilds.
"""

from __future__ import annotations

import os
import re
import sysconfig
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
    "emit_code_comments": False,  # a third of the C
}

# Typed memoryviews and the like, once for all modules in place of once in each.
SHARED = "fastmmu._cyutility"

JOBS = int(os.environ.get("FASTMMU_JOBS") or len(os.sched_getaffinity(0)))
KERNEL_FLAGS = ["-O3", "-g0"]
EDGE_FLAGS = ["-O1", "-g0"]
"""Of modules that only Python calls: without a function that runs without the interpreter there is no hot loop."""
if "FASTMMU_CFLAGS" in os.environ:
    KERNEL_FLAGS = EDGE_FLAGS = os.environ["FASTMMU_CFLAGS"].split()
if os.environ.get("FASTMMU_NATIVE") == "1":
    KERNEL_FLAGS = [*KERNEL_FLAGS, "-march=native"]

# Free-threaded interpreters have no stable ABI.
LIMITED_API = os.environ.get("FASTMMU_LIMITED_API") == "1" and not sysconfig.get_config_var("Py_GIL_DISABLED")
MACROS = [("Py_LIMITED_API", "0x030B0000")] if LIMITED_API else []  # 3.11, the oldest that has buffers in it
if os.environ.get("FASTMMU_CHECKS") == "1":
    MACROS.append(("FASTMMU_CHECKS", "1"))
TRANSLATION = repr((Cython.__version__, DIRECTIVES))
"""The C is the same for every build; each place of objects has settings of its own."""
SETTINGS = repr((TRANSLATION, KERNEL_FLAGS, EDGE_FLAGS, MACROS))


def flags(source: Path) -> list[str]:
    hot = re.search(r"^\s*cdef .*\bnoexcept nogil:|^\s.*\) noexcept nogil:", source.read_text(), re.MULTILINE)
    return KERNEL_FLAGS if hot else EDGE_FLAGS


def kernels() -> list[Extension]:
    sources = sorted(path.relative_to(ROOT) for path in (ROOT / SRC).rglob("*.pyx"))
    by_name = {".".join(source.relative_to(SRC).with_suffix("").parts): str(source) for source in sources}
    by_name[SHARED] = str(SRC / (SHARED.replace(".", "/") + ".c"))
    return [
        Extension(name, [source], define_macros=MACROS, py_limited_api=LIMITED_API) for name, source in by_name.items()
    ]


def changed(stamp: Path, settings: str) -> bool:
    return not stamp.exists() or stamp.read_text() != settings


class BuildKernels(build_ext):
    """Translates to C when extensions are really built (so that `sdist` needs no C), under build/."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or JOBS
        if self.editable_mode:  # setuptools would build in a temporary directory, everything anew each time
            self.build_temp = self.build_lib = str(OUT / "editable")

    def run(self) -> None:
        c, stamp = OUT / "cython", Path(self.build_temp) / "settings"
        translate = self.force or changed(c / "settings", TRANSLATION)
        self.force = self.force or changed(stamp, SETTINGS)
        sources = {extension.name: Path(extension.sources[0]) for extension in self.extensions}
        made = cythonize(
            self.extensions,
            build_dir=str(c),
            include_path=[str(SRC)],
            compiler_directives=DIRECTIVES,
            shared_utility_qualified_name=SHARED,
            annotate=os.environ.get("FASTMMU_ANNOTATE") == "1",
            force=translate,
            nthreads=JOBS if JOBS > 1 else 0,
            quiet=True,
        )
        by_name = {extension.name: extension for extension in made}
        for extension in self.extensions:
            vars(extension).update(vars(by_name[extension.name]))
            source = sources[extension.name]
            extension.extra_compile_args = flags(source) if source.suffix == ".pyx" else EDGE_FLAGS
        (c / "settings").write_text(TRANSLATION)
        self.extensions.sort(key=lambda extension: -Path(extension.sources[0]).stat().st_size)  # the longest first
        super().run()
        if self.inplace:  # of two files of one module Python would load the one that is not of the stable ABI
            for name in sources:
                self.beside(name).unlink(missing_ok=True)
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.write_text(SETTINGS)

    def beside(self, name: str) -> Path:
        """The file that a build of the other ABI made of this module."""
        suffix = sysconfig.get_config_var("EXT_SUFFIX") if LIMITED_API else ".abi3.so"
        return ROOT / SRC / (name.replace(".", "/") + suffix)


if __name__ == "__main__":
    setup(
        ext_modules=kernels(),
        cmdclass={"build_ext": BuildKernels},
        options={"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED_API else {},
    )
