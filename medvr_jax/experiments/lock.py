"""One process at a time makes the runs of an experiment. No jax in this file."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from medvr_jax.errors import UserError


@contextlib.contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Makes the folder and holds its lock, which ends with the process, however it ends.

    UserError where another process holds it, or where the folder cannot be written to.
    """
    file = folder / "lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = file.open("w")
    except OSError as error:
        raise UserError(f"--workdir: {folder} cannot be written to: {error.strerror or error}") from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"--workdir: another process is making the runs of {folder}; wait until it has ended, or give another"
                " --workdir"
            ) from None
        except OSError as error:
            raise UserError(
                f"--workdir: {file} cannot be locked ({error.strerror or error}); give a --workdir on a file system"
                " that has locks"
            ) from error
        yield  # the file stays: who removed it could lock another one than the process that opened it just before
