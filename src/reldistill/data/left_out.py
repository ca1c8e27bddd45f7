"""What a data set holds beside the images that are used: counted by kind, and reported."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from reldistill.data.decode import EXTENSIONS, HEIF_EXTENSIONS
from reldistill.data.files import Store

LOOSE = "images outside class folders"
SINGULAR = re.compile(r"\b(file|image|link)s\b")


def is_image(path: str) -> bool:
    """Whether a file is one to be read as an image, by its name."""
    return posixpath.splitext(path)[1].lower() in EXTENSIONS


def kind_of(path: str) -> str:
    """What a file that is not an image is counted as.

    >>> kind_of("notes/README.TXT")
    '.txt files'
    """
    ending = posixpath.splitext(path)[1].lower()
    return f"{ending} files" if ending else "files without an ending"


def unused(store: Store, used: Collection[str], roots: Iterable[str]) -> Counter[str]:
    """What is in a Store of class folders beside the images in use, in words → how often.

    Args:
        store: the files.
        used: paths of the images in use.
        roots: the folders that hold the class folders in use.
    """
    tops = [root.split("/") if root else [] for root in roots]

    def aside(folders: list[str]) -> str | None:
        """The outermost folder around a file that has nothing to do with any root."""
        for depth in range(1, len(folders) + 1):
            if not any(folders[: min(depth, len(root))] == root[:depth] for root in tops):
                return "/".join(folders[:depth])
        return None

    counts = Counter(store.left_out)
    for folder in sorted(store.folders):
        if outer := aside(folder.split("/")):
            counts[f"files in {outer}/"] += 0
    used = frozenset(used)
    for path in store.files:
        if path not in used:
            outer = aside(path.split("/")[:-1])
            counts[f"files in {outer}/" if outer else LOOSE if is_image(path) else kind_of(path)] += 1
    return counts


def in_words(left_out: Mapping[str, int]) -> str:
    """The end of a line about a data set: nothing where nothing was left out.

    >>> in_words({".txt files": 1, "files in extra/": 1200})
    '; not used: 1 .txt file, 1,200 files in extra/'
    """
    words = []
    for word, number in left_out.items():
        counted = SINGULAR.sub(r"\1", word, count=1) if number == 1 else word
        hint = " (pip install 'reldistill[heic]' reads them)" if word.partition(" ")[0] in HEIF_EXTENSIONS else ""
        words.append(f"{number:,} {counted}{hint}")
    return f"; not used: {', '.join(words)}" if words else ""
