"""A run's teacher cache: what it depends on, what is kept in it, and what it takes on disk."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from reldistill.core.checks import UserError
from reldistill.data.images import Images
from reldistill.networks.saved import OpenedNetwork
from reldistill.step.distiller import Distiller
from reldistill.step.term import Term
from reldistill.tasks.base import AnyTask
from reldistill.training.progress import say
from reldistill.training.settings import DataSettings, PairSettings, TrainSettings
from reldistill.training.teacher_cache import TeacherCache, fingerprint_of, size_in_words
from reldistill.training.trainer import resolve_precision

CACHED_VIEWS = 16
"""Views of a run with a teacher cache, by default."""


def settle_views(data: DataSettings, networks: PairSettings) -> DataSettings:
    """With a teacher cache every run, even one without a teacher, sees the cached views."""
    if networks.cache_teacher is None or data.views is not None:
        return data
    return dataclasses.replace(data, views=CACHED_VIEWS)


def check_cache(networks: PairSettings, *, task: AnyTask) -> None:
    """UserError where a cache is asked for that could not be used."""
    if networks.cache_teacher is not None and not task.keeps_teacher:
        raise UserError(f"--cache-teacher: a teacher's outputs for {task.name} can't be cached; leave the option out")


@torch.no_grad()
def open_cache(
    networks: PairSettings,
    distiller: Distiller,
    teacher: OpenedNetwork,
    images: Images,
    training: TrainSettings,
    *,
    views: int | None,
) -> TeacherCache | None:
    """What the terms need of the teacher, on disk, where that was asked for."""
    if networks.cache_teacher is None or views is None or not distiller.teachers:
        return None
    if training.nodes > 1:
        raise UserError("--cache-teacher needs a folder that all processes see: it works on one machine only")
    for term in distiller.terms:
        if isinstance(term, Term) and term.chooses_place:
            raise UserError(
                f"--cache-teacher: {term.name} chooses the teacher's level while it trains, so no one level can be kept"
            )
        if isinstance(term, Term) and term.two_views:
            raise UserError(f"--cache-teacher: {term.name} shows the teacher a second view of each image, never kept")
    size = images.image_size
    one = torch.zeros(1, 3, size, size, device=next(teacher.extractor.parameters()).device)
    extractor = teacher.extractor
    cache = TeacherCache(
        Path(networks.cache_teacher),
        made_of={
            "teacher": fingerprint_of(extractor.network),
            "teacher input": [*teacher.card.mean, *teacher.card.std, extractor.input_size or size],
            "data": images.fingerprint,
            "augmentation": images.augment,
            "image size": size,
            "precision": resolve_precision(training.precision, training.accelerator),
        },
        rows={name: tuple(tensor.shape[1:]) for name, tensor in distiller.ask_teacher(one).items()},
        images=images.train.images,
        views=views,
    )
    state = "complete" if cache.is_full else f"filled in the first {cache.views} epochs"
    say(
        f"teacher cache: {cache.views} views of {cache.images:,} images take {size_in_words(cache.bytes)} in "
        f"{cache.folder} ({state})"
    )
    return cache
