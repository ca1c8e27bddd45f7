"""Held-out images that are training images too, byte by byte."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

from reldistill.data.files import FileReader


@dataclass
class Copies:
    """What was found.

    Args:
        pairs: (held-out image, training image) by their keys, one for each held-out image with an equal.
        whole: whether all were compared; some were not where that would have read too much.
    """

    pairs: list[tuple[str, str]] = field(default_factory=list)
    whole: bool = True

    def in_words(self, part: str, reader: FileReader) -> str:
        """One line that warns of it; empty where there are none."""
        if not self.pairs:
            return ""
        held, train = map(reader.name, self.pairs[0])
        count = f"{'' if self.whole else 'at least '}{len(self.pairs):,}"
        first = f"{held} is {train}" if held != train else held
        return (
            f"{part} images that are training images too, byte by byte: {count} (the first: {first}); what is measured "
            f"on them says nothing about new images"
        )


def copies(
    train: Sequence[str],
    held: Sequence[str],
    reader: FileReader,
    *,
    mark: Callable[[str], Hashable] | None = None,
    most_bytes: float = math.inf,
) -> Copies:
    """Compare held-out images with the training images of equal marks.

    Args:
        train: keys of the training images.
        held: keys of the held-out images.
        reader: gives their content.
        mark: what equal images have in common and is cheap to know; by default the file's size.
        most_bytes: how much is read at most.
    """
    mark = mark or reader.store.signature
    digests: dict[str, bytes] = {}
    found, left = Copies(), most_bytes

    def digest(key: str) -> bytes:
        nonlocal left
        if key not in digests:
            content = reader.store.read(key)
            left -= len(content)
            digests[key] = hashlib.blake2b(content).digest()
        return digests[key]

    alike: defaultdict[Hashable, list[str]] = defaultdict(list)
    for key in train:
        alike[mark(key)].append(key)
    for key in held:
        for other in alike.get(mark(key), ()):
            if left <= 0:
                found.whole = False
                return found
            if key == other or digest(key) == digest(other):
                found.pairs.append((key, other))
                break
    return found
