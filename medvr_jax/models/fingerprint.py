"""A short text that is another one for another model folder or checkpoint."""

from __future__ import annotations

import hashlib
from pathlib import Path

_SAMPLE, _SAMPLES = 1 << 16, 16  # bytes of a large file that the fingerprint sees, and in how many places


def folder_fingerprint(folder: Path) -> str:
    """Of the files' names, sizes and bytes; of large ones a few stretches, which no training leaves as they are."""
    digest = hashlib.blake2s(digest_size=8)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, size = file.relative_to(folder), file.stat().st_size
        if any(part.startswith(".") for part in name.parts):  # what downloads leave
            continue
        digest.update(f"{name} {size}\n".encode())
        with file.open("rb") as stream:
            for number in range(_SAMPLES):
                stream.seek(max(size - _SAMPLE, 0) * number // (_SAMPLES - 1))
                digest.update(stream.read(_SAMPLE))
                if size <= _SAMPLE:
                    break
    return digest.hexdigest()
