"""How sure a share of questions is, from its number alone."""

from __future__ import annotations

import math


def wilson(share: float, number: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's interval of a share of `number` questions; 95 % with the default z."""
    middle = share + z**2 / (2 * number)
    reach = z * math.sqrt(share * (1 - share) / number + (z / (2 * number)) ** 2)
    scale = 1 + z**2 / number
    return max((middle - reach) / scale, 0.0), min((middle + reach) / scale, 1.0)
