"""All published sets by name."""

from __future__ import annotations

from medvr_jax.datasets.published import (
    grounding,
    medvlm_r1,
    medxpertqa_mm,
    omnimedvqa,
    path_vqa,
    pmc_vqa,
    slake,
    slake_detection,
    vqa_rad,
)
from medvr_jax.datasets.published.record import PublishedSet

SETS: dict[str, PublishedSet] = {
    module.SET.name: module.SET
    for module in (
        omnimedvqa,
        pmc_vqa,
        medxpertqa_mm,
        vqa_rad,
        slake,
        path_vqa,
        medvlm_r1,
        grounding,
        slake_detection,
    )
}
