"""Where the tiny checkpoint lies."""

from pathlib import Path

TINY = Path(__file__).parents[2] / "medvr_jax" / "assets" / "tiny"
