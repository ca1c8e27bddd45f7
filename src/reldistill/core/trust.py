"""Networks from outside the library that a saved network's card may name: those that the user has named."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from reldistill.core.checks import UserError

HUB_PREFIXES = ("hf-hub:", "hf_hub:", "local-dir:")
"""How names begin that timm looks up on a hub or in a folder."""

FILE = re.compile(r"(?P<path>.+\.py)(?::(?P<factory>\w*))?")
"""`FILE.py:factory`."""

_named: list[str] = []


def is_from_outside(name: str) -> bool:
    """Whether to open that network runs a file, or asks a model hub."""
    return bool(FILE.fullmatch(name)) or name.startswith(HUB_PREFIXES)


def trust(names: Iterable[str]) -> None:
    """Let the cards of saved networks name these too, in this process.

    Args:
        names: `FILE.py:factory`, or a hub's name of a network, e.g. `hf-hub:OWNER/NAME`.

    Raises:
        UserError: when a name is of another form.
    """
    for name in names:
        file = FILE.fullmatch(name)
        if not is_from_outside(name) or (file and not file["factory"]):
            raise UserError(f"--trust {name}: give FILE.py:factory, the function of a file that makes the network")
        note_named(name)


def forget() -> None:
    """Nothing has been named yet: a new command line begins."""
    _named.clear()


def note_named(name: str) -> None:
    """The user has named a network: where it is from outside, a card may name it too."""
    if is_from_outside(name) and name not in _named:
        _named.append(name)


def named() -> tuple[str, ...]:
    """Everything from outside that the user has named, for a process that works on the user's behalf."""
    return tuple(_named)


def as_named(name: str, *, card_of: Path) -> str:
    """A card's network as the user named it: of a file that the user named, wherever the card places it.

    Args:
        name: the card's.
        card_of: the card's file.

    Raises:
        UserError: when that would run a file or ask a hub that the user has not named.
    """
    if not is_from_outside(name) or name in _named:
        return name
    alike = {Path(one).expanduser().resolve(): one for one in _named if _last(one) == _last(name)}
    if len(alike) == 1:
        return next(iter(alike.values()))
    does = "run that file" if FILE.fullmatch(name) else "ask a model hub"
    raise UserError(
        f"{card_of}: its network is {name}, and to open it would {does}, which never happens because a file of weights "
        f"says so: where you trust it, add --trust {name}"
    )


def _last(name: str) -> str:
    """The file's own name with the factory; of a hub's name all of it."""
    return re.split(r"[/\\]", name)[-1] if FILE.fullmatch(name) else name
