"""`--mode=leaks`: which images of the test questions are among those that a run learns from, into WORKDIR/leaks/."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medvr_jax.datasets.example import Example
from medvr_jax.datasets.leaks import HashedImages, find_leaks, hash_images, write_leaks
from medvr_jax.datasets.mixing import parse_sets
from medvr_jax.datasets.source import make_source
from medvr_jax.evaluation.questions import published_questions
from medvr_jax.reports.progress import Progress


def check_leaks(config: Any, workdir: str | Path) -> None:
    """Compares the training questions of `data` with `evaluate.sets`, or with all test questions of `data`."""
    source = make_source(config.data, config.seed, Path(workdir) / "faults")
    learned = source.learned()
    tested = published_questions(config) if config.evaluate.sets else source.test_sets()
    sets, _ = parse_sets(config.data.sets)
    train = _hashed(learned, f"training questions of {', '.join(sets) or config.data.train_file}")
    for name, examples in tested.items():
        report = find_leaks(train, _hashed(examples, f"test questions of {name}"))
        markdown, _ = write_leaks(Path(workdir) / "leaks" / name, report)
        print(f"{name}: {report.summary()}\n{markdown}")


def _hashed(examples: Sequence[Example], name: str) -> HashedImages:
    with Progress(len(examples), 0, f"images of {name}") as progress:
        return hash_images(examples, name, progress.update)
