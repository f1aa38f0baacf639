"""Eight CPU devices for every test process, so that meshes are real; arrays live on the first unless a test says so.

All processes of a test run keep what they compile in one folder, as many tests need the same programs.
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from medvr_jax import programs

jax.config.update("jax_num_cpu_devices", 8)

_OWN_FOLDER = None
if programs.FOLDER_VARIABLE not in os.environ:  # else it is the user's, or this is a worker of the process that made it
    _OWN_FOLDER = os.environ[programs.FOLDER_VARIABLE] = tempfile.mkdtemp(prefix="medvr_jax_tests_")
programs.keep_programs("")

_MOST_MAPS = 8_000  # Linux allows a process 65,530 memory maps; the code of one compiled program may take a hundred
_MAPS = Path("/proc/self/maps")  # a line each


@pytest.fixture(scope="module", autouse=True)
def _forget_programs() -> Iterator[None]:
    """Programs of modules that are done would pile up until one more breaks the process; the disk keeps them."""
    yield
    if not _MAPS.is_file() or _MAPS.read_bytes().count(b"\n") > _MOST_MAPS:
        jax.clear_caches()
        gc.collect()


def pytest_unconfigure() -> None:
    """Deletes the folder at the end of the run."""
    if _OWN_FOLDER:
        shutil.rmtree(_OWN_FOLDER, ignore_errors=True)
