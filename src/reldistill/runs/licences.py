"""The licences of the weights that a run begins with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from reldistill.core.run_files import RECORD_FILE
from reldistill.networks.saved import OpenedNetwork
from reldistill.networks.sources import published_licence
from reldistill.report.record import NetworkRecord, read_record

_WORDS = ("-nc", "noncommercial", "non-commercial", "research")
_NAMES = ("seer-license", "apple-amlr")
"""Licences that allow no commercial use, though their names don't tell."""


def licence_of(network: OpenedNetwork) -> str | None:
    """The licence of a network's starting weights, as their publisher names it; of a run's, those of all that went in.

    Returns:
        None for random weights; "unknown: …" where it is not published.
    """
    source = network.pretrained
    if source == "no":
        return None
    if source in ("timm", "torchvision"):
        return published_licence(network.card.name, source) or f"unknown: {source} names none"
    record = Path(source).parent / RECORD_FILE
    if source == "factory" or not record.is_file():
        return f"unknown: {network.card.name if source == 'factory' else source}"
    run = read_record(record.parent)
    found = dict.fromkeys(one.licence for one in (run.student, run.teacher) if one is not None and one.licence)
    return "; ".join(found) or None


def licence_warnings(networks: Iterable[NetworkRecord | None]) -> list[str]:
    """In words, which networks' weights are not for commercial use."""
    found = []
    for network in networks:
        licence = "" if network is None or network.licence is None else network.licence
        parts = [part for part in licence.lower().split("; ") if not part.startswith("unknown")]
        if network is not None and any(part in _NAMES or any(word in part for word in _WORDS) for part in parts):
            found.append(
                f"the weights of {network.name} are under {licence}, which is not for commercial use: what is trained "
                f"from them may fall under it too"
            )
    return found
