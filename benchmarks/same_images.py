"""COCO's training images as everything at once: to train on, to validate on and to test on.

    python -m benchmarks.same_images coco256 coco128

copies the training images of a COCO folder and their boxes. Whoever cannot learn what is in them has a wrong target,
transform or loss.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from reldistill.core.checks import UserError


def same_images(folder: Path, target: Path) -> None:
    """Write the folder.

    Args:
        folder: of `annotations/instances_train2017.json` and `images/train2017`.
        target: where to write; made.

    Raises:
        UserError: no such annotations, or something is there already.
    """
    source = folder / "annotations" / "instances_train2017.json"
    if not source.is_file():
        raise UserError(f"no {source}: give a folder of COCO 2017")
    if target.exists():
        raise UserError(f"{target} exists: name another folder")
    (target / "annotations").mkdir(parents=True)
    for split in ("train", "val", "test"):
        shutil.copyfile(source, target / "annotations" / f"instances_{split}2017.json")
        shutil.copytree(folder / "images" / "train2017", target / "images" / f"{split}2017")


def main() -> int:
    """Write a folder of the same images thrice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("target", type=Path)
    given = parser.parse_args()
    try:
        same_images(given.folder, given.target)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
