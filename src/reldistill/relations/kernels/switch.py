"""Whether relations are computed by the fast kernels, as they are by default, or as their equations read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

_enabled = True


def enabled() -> bool:
    """Whether the fast kernels are used."""
    return _enabled


@contextlib.contextmanager
def fast_kernels(wanted: bool) -> Iterator[None]:
    """Use the fast kernels, or the readable form, for all that is computed inside; for the whole process.

    Example:
        >>> with fast_kernels(False):
        ...     enabled()
        False
        >>> enabled()
        True
    """
    global _enabled
    before, _enabled = _enabled, wanted
    try:
        yield
    finally:
        _enabled = before
