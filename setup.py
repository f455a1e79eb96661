"""Runs csrc/icm_build as part of every setuptools build; everything declarative is in pyproject.toml.

Variables: USE_CPP=0 (pure Python), ICM_FAST_CUDA=0|1|auto, and the usual CXX, CXXFLAGS, LDFLAGS, CUDA_HOME,
NVCC_FLAGS, TORCH_CUDA_ARCH_LIST, MAX_JOBS, DEBUG=1.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import ClassVar

from setuptools import Distribution, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools < 70.1
    from wheel.bdist_wheel import bdist_wheel

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "csrc"))

import icm_build  # noqa: E402 - found through the line above

LIB_DIR = Path("icm_fast", "lib")
PURE = os.environ.get("USE_CPP") == "0"


class NativeDistribution(Distribution):
    """Compiled, although setuptools knows of no extension module: the libraries are no Python modules."""

    def has_ext_modules(self) -> bool:
        return not PURE


class Build(build):
    """Always runs build_ext: under USE_CPP=0 it compiles nothing, but records so and removes an earlier build."""

    sub_commands: ClassVar = [(name, None if name == "build_ext" else test) for name, test in build.sub_commands]

    def run(self) -> None:
        # A module that was deleted or renamed since an earlier build must not travel on in the wheel.
        shutil.rmtree(Path(self.build_lib, "icm_fast"), ignore_errors=True)
        super().run()


class BuildNative(build_ext):
    """Writes the libraries and build.json into the package: in place for an editable install."""

    def run(self) -> None:
        try:
            icm_build.build(ROOT, self._out_dir())
        except icm_build.BuildError as error:
            raise SystemExit(f"icm_fast: ERROR: {error}") from None

    def get_outputs(self) -> list[str]:
        # Whichever libraries this machine could build.
        names = (icm_build.FACTS_FILE, *icm_build.LIBRARIES.values())
        return [str(Path(self.build_lib, LIB_DIR, name)) for name in names if (self._out_dir() / name).exists()]

    def get_output_mapping(self) -> dict[str, str]:
        if not self.inplace:
            return {}
        return {output: str(LIB_DIR / Path(output).name) for output in self.get_outputs()}

    def get_source_files(self) -> list[str]:
        files = (path for path in (ROOT / "csrc").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        return sorted(str(path.relative_to(ROOT)) for path in files)

    def _out_dir(self) -> Path:
        return (ROOT if self.inplace else Path(self.build_lib)) / LIB_DIR


class Wheel(bdist_wheel):
    """The libraries depend on the platform alone: neither on the Python version nor on torch's."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    distclass=NativeDistribution,
    cmdclass={"build": Build, "build_ext": BuildNative, "bdist_wheel": Wheel},
    # Here and not in pyproject.toml: setuptools before 77 refuses the license expression there, later ones warn
    # about the table form that replaced it.
    license="BSD-3-Clause",
)
