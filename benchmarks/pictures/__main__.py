"""python -m benchmarks.pictures [NAME …]: draw the pictures of the method pages and the README's, or some of them."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.pictures import frame, of_detectors, of_logits, of_maps, of_samples

FOLDER = Path(__file__).parents[2] / "docs" / "pictures"
PICTURES = {**of_logits.PICTURES, **of_samples.PICTURES, **of_maps.PICTURES, **of_detectors.PICTURES}


def main(names: list[str]) -> int:
    """Draw what was asked for, everything by default."""
    FOLDER.mkdir(exist_ok=True)
    with frame.style():
        for name, picture in PICTURES.items():
            if not names or name in names:
                picture(FOLDER / f"{name}.svg")
        if not names or "opening" in names:
            of_maps.opening(FOLDER / "opening-light.svg", scheme="light")
            of_maps.opening(FOLDER / "opening-dark.svg", scheme="dark")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
