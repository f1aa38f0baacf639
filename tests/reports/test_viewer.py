"""Pages of groups of trajectories."""

from __future__ import annotations

import numpy as np

from medvr_jax.reports.viewer import groups_page
from tests.reports.made_run import made_group, picture


def test_a_page_of_groups_without_a_run() -> None:
    rng = np.random.default_rng(0)
    centre = np.array([0.4, 0.6])
    records = made_group(rng, 0, 0, 4, 0.5, centre)
    unknown = {"correct": None, "rewards": None, "advantage": None, "consensus_iou": None}
    groups = [(records, picture(rng, centre)), ([record | unknown for record in records], None)]
    page = groups_page("A title", "A lead", groups, raster=64, notice="Not a <medical> device")
    assert "A title" in page and "A lead" in page and "Not a &lt;medical&gt; device" in page
    assert page.count("What is the orientation of the stripes") >= 1
