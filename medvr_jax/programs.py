"""XLA programs of a run: compiled ahead of time, kept on disk from run to run, and counted.

A jitted function that was lowered and compiled for given abstract arguments uses that executable when it is called
with arrays of those shapes, dtypes and shardings: jax keeps it with the function. So a program is warm when
`function.lower(*arguments).compile()` has been called once, and nothing else of the caller changes.
"""

from __future__ import annotations

import concurrent.futures
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from medvr_jax.errors import UserError

AUTO = "auto"
FOLDER_VARIABLE = "JAX_COMPILATION_CACHE_DIR"  # jax's own name
_MOST_THREADS = 8  # each holds the compiler's memory for one program
# Everything is kept: small programs are many, and quick to read. (jax's name of the setting, its value)
_KEEP_ALL = (("jax_persistent_cache_min_compile_time_secs", 0.0), ("jax_persistent_cache_min_entry_size_bytes", -1))

# ------------------------------------------------------------------------------------------------------- counting


class Compilations(NamedTuple):
    """Programs that this process has made so far.

    Attributes:
        count: all of them. It grows after warm-up where a shape is not static.
        from_cache: how many of these were read from the disk, compiled by an earlier process.
        seconds: spent in the compiler and reading, all threads together.
    """

    count: int
    from_cache: int
    seconds: float


_seconds: list[float] = []
_hits: list[None] = []


def _hear_duration(event: str, duration: float, **_: object) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        _seconds.append(duration)


def _hear(event: str, **_: object) -> None:
    if event == "/jax/compilation_cache/cache_hits":
        _hits.append(None)


jax.monitoring.register_event_duration_secs_listener(_hear_duration)
jax.monitoring.register_event_listener(_hear)


def compilations() -> Compilations:
    """What this process has compiled so far."""
    return Compilations(len(_seconds), len(_hits), sum(_seconds))


# ---------------------------------------------------------------------------------------------------- keeping on disk


def keep_programs(choice: str) -> Path | None:
    """Lets jax keep compiled programs on disk; to be called before anything is compiled. Processes may share a folder.

    Args:
        choice: a folder; "auto" for ~/.cache/medvr_jax/programs where that can be written; "" for none. The environment
            variable JAX_COMPILATION_CACHE_DIR wins over all of these, and jax's own variables over what is set here.

    Returns:
        the folder, None without one.
    """
    folder = Path(chosen) if (chosen := os.environ.get(FOLDER_VARIABLE)) else _folder(choice)
    if folder is None:
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    for setting, value in _KEEP_ALL:
        if setting.upper() not in os.environ:
            jax.config.update(setting, value)
    return folder


def _folder(choice: str) -> Path | None:
    if not choice:
        return None
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(f"{home}/medvr_jax/programs" if choice == AUTO else choice).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        if choice == AUTO:
            return None
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"programs.cache: {choice!r} cannot be written to ({reason}); give another folder, or '' for none"
        ) from error
    return folder.absolute()


# ------------------------------------------------------------------------------------------------------ ahead of time


class Program(NamedTuple):
    """A jitted function and the abstract arguments that it is going to be called with.

    Attributes:
        name: what the progress line calls it.
        function: made by `jax.jit`.
        arguments: trees of `jax.ShapeDtypeStruct`s with the shardings of what comes; without one for host arrays.
    """

    name: str
    function: Any
    arguments: tuple[Any, ...]


def abstract(tree: Any) -> Any:
    """Arrays, of the host or of devices, as the `jax.ShapeDtypeStruct`s that stand for them in a `Program`."""

    def one(leaf: Any) -> jax.ShapeDtypeStruct:
        sharding = leaf.sharding if isinstance(leaf, jax.Array) else getattr(leaf, "sharding", None)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(one, tree)


def warm_up(
    programs: Sequence[Program], progress: Callable[[int, int, str], None] | None = None, threads: int | None = None
) -> float:
    """Compiles the programs, or reads them from the disk, in this order; calling them then compiles nothing more.

    They are traced one after the other, which needs the interpreter, and compiled in threads behind it, which does not.

    Args:
        progress: called here with (done, total, name) as each becomes ready.
        threads: compilers at a time. Each uses several cores by itself (on two, one at a time was the fastest), so by
            default a quarter of the cores, a few at most; one where several processes have to agree on the order.

    Returns:
        seconds that passed.
    """
    began = time.perf_counter()
    if threads is None:
        threads = min(max((os.cpu_count() or 1) // 4, 1), _MOST_THREADS) if jax.process_count() == 1 else 1
    done = 0
    with concurrent.futures.ThreadPoolExecutor(threads, "compile") as pool:
        waiting: dict[concurrent.futures.Future, str] = {}
        for program in programs:
            lowered = program.function.lower(*program.arguments)
            waiting[pool.submit(lowered.compile)] = program.name
            done = _tell(waiting, done, len(programs), progress, wait=len(waiting) > threads)
        while waiting:
            done = _tell(waiting, done, len(programs), progress, wait=True)
    return time.perf_counter() - began


def _tell(
    waiting: dict[concurrent.futures.Future, str],
    done: int,
    total: int,
    progress: Callable[[int, int, str], None] | None,
    *,
    wait: bool,
) -> int:
    """Takes out what is ready, at least one where `wait` is true; returns how many are done in all."""
    timeout = None if wait else 0
    ready, _ = concurrent.futures.wait(waiting, timeout, concurrent.futures.FIRST_COMPLETED)
    for future in [future for future in waiting if future in ready]:
        future.result()  # what the compiler refused is raised here
        done += 1
        name = waiting.pop(future)
        if progress:
            progress(done, total, name)
    return done
