"""Text and numbers made safe and short for a page."""

from __future__ import annotations

import html
import re

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


def escape(value: object) -> str:
    """A value as HTML text, also inside a quoted attribute; characters that HTML forbids become U+FFFD."""
    return html.escape(_CONTROL.sub("\ufffd", str(value)), quote=True)


def number(value: float | None, digits: int = 3) -> str:
    """A number with about `digits` significant digits and a true minus sign; a dash for none."""
    if value is None:
        return "–"
    size = abs(value)
    if value == int(value) and size < 1e6:
        text = f"{int(value):,}"
    elif size >= 1e6 or size < 1e-3:
        text = f"{value:.{digits - 2}e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    elif size >= 100:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.{digits}g}"
    return text.replace("-", "\u2212", 1) if text.startswith("-") else text


def signed(value: float | None) -> str:
    """A number with its sign, to two places."""
    return "–" if value is None else f"{value:+.2f}".replace("-", "\u2212")


def percent(share: float | None) -> str:
    """0.934 -> "93 %", with a space that does not break."""
    return "–" if share is None else f"{100 * share:.0f}\u00a0%"
