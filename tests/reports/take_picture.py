"""The README's picture: one group of a run's report, as a browser shows it.

python -m tests.reports.take_picture DIR/report/index.html '#step=5&group=0&slot=11' FILE.png [--theme=dark]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.reports.browser import launched


def take_picture(page_file: Path, address: str, picture: Path, theme: str = "light", height: int = 960) -> None:
    """Writes the upper part of a page, 1200 pixels wide, as PNG."""
    with launched() as browser:
        page = browser.new_page(viewport={"width": 1200, "height": height}, color_scheme=theme)
        page.goto(page_file.resolve().as_uri() + address)
        page.locator(".branches .level").first.wait_for(state="attached")
        page.screenshot(path=picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("address")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--theme", choices=("light", "dark"), default="light")
    parser.add_argument("--height", type=int, default=960)
    args = parser.parse_args()
    take_picture(args.page, args.address, args.picture, args.theme, args.height)


if __name__ == "__main__":
    main()
