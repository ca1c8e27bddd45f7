"""A part of an archive of images, for shorter runs.

    python -m benchmarks.subset cifar10-jpeg.zip cifar10-15k.zip --images 1500

takes the first 1,500 training images of each class, and all test images (`--val test`) or the next 1,500 training
images (`--val train`) to measure on.
"""

from __future__ import annotations

import argparse
import zipfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path


def subset(archive: Path, target: Path, *, images: int, val: str) -> None:
    """Write the part.

    Args:
        archive: a zip of train/CLASS/NAME and test/CLASS/NAME.
        target: the zip to write.
        images: training images of each class.
        val: `test` for all test images, `train` for as many further training images.
    """
    names: dict[str, dict[str, list[str]]] = {"train": defaultdict(list), "test": defaultdict(list)}
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as out:
        for name in sorted(source.namelist()):
            split, _, rest = name.partition("/")
            if split in names and rest.count("/") == 1 and not rest.endswith("/"):
                names[split][rest.split("/")[0]].append(name)

        def copy(split: str, class_name: str, chosen: Sequence[str]) -> None:
            for name in chosen:
                out.writestr(f"{split}/{class_name}/{Path(name).name}", source.read(name))

        for class_name, found in names["train"].items():
            copy("train", class_name, found[:images])
            copy("val", class_name, found[images : 2 * images] if val == "train" else names["test"][class_name])


def main() -> None:
    """Write a part of an archive."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--val", choices=["test", "train"], default="test")
    given = parser.parse_args()
    subset(given.archive, given.target, images=given.images, val=given.val)


if __name__ == "__main__":
    main()
