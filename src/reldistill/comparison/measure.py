"""What is measured of a comparison beside its training: the one look at the test images, and what networks cost."""

from __future__ import annotations

import dataclasses
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from reldistill.comparison.cells import Cell, MethodParts
from reldistill.core.run_files import BEST_WEIGHTS, LAST_WEIGHTS
from reldistill.core.safe_files import sha256, write_arrays, write_text
from reldistill.core.types import Batch
from reldistill.data.images import Images, test_loader
from reldistill.methods.build import build_distiller
from reldistill.networks.saved import OpenedNetwork, run_folder
from reldistill.networks.weights import weights_file
from reldistill.report.comparison.cell_records import (
    ARRAYS_FILE,
    REFERENCE,
    TEST_FILE,
    TestRecord,
    dump_json,
    read_arrays,
)
from reldistill.runs.fit import data_record
from reldistill.runs.folders import MAY_CHANGE_ON_RESUME
from reldistill.runs.opening import open_student, open_teacher, trusted_teacher
from reldistill.step.distiller import Distiller
from reldistill.step.term import Term
from reldistill.tasks.base import AnyTask, Look, task_of
from reldistill.training.settings import DataSettings, PairSettings, TrainSettings, flat_settings


def measure_cell(cell: Cell, folder: Path, images: Images, *, reference: Path) -> None:
    """Write `test.npz` and then `test.json` into a finished run's folder."""
    task = task_of(cell.data)
    found = {}
    for name, file in (("last", LAST_WEIGHTS), ("best", BEST_WEIGHTS)):
        student = task.open(str(folder.absolute()), role="student", images=images, weights=str(folder / file))
        found[name] = task.look(student, images, cell.training)
    last, best = found["last"], found["best"]
    teacher = read_arrays(reference / ARRAYS_FILE)
    beside, _ = last.beside(teacher), best.beside(teacher)
    write_arrays(folder / ARRAYS_FILE, **last.arrays())
    record = TestRecord(
        test_last=last.score,
        test_best=best.score,
        **beside,
        peak_memory=peak_memory(),
        test_images=test_loader(images).images,
    )
    write_text(folder / TEST_FILE, dump_json(record))


def measure_reference(
    pairs: Sequence[PairSettings],
    data: DataSettings,
    images: Images,
    training: TrainSettings,
    methods: Sequence[str],
    folder: Path,
) -> None:
    """Write what all cells have in common: teacher, untrained students, each method's parts, settings and costs.

    Raises:
        UserError: when networks and data don't go together, or nothing could be learned from the teacher.
    """
    task = task_of(data)
    look = task.look
    teacher = open_teacher(pairs[0], images, task=task, seed=training.seed)
    weak = pairs[0].accept_weak_teacher
    trusted = trusted_teacher(teacher, images, training, task=task, accept_weak=weak)
    found = look(teacher, images, training)
    arrays = found.reference_arrays()
    students = {}
    for number, pair in enumerate(pairs):
        untrained = open_student(pair, images, task=task, seed=training.seed)
        students[pair.student] = {
            **_cost(untrained, look),
            "methods": {method: _method(method, pair, images, training, task, teacher) for method in methods},
        }
        arrays |= {f"untrained_{number}": features for features in look.features_of(untrained, images, training)}
    write_arrays(folder / ARRAYS_FILE, **arrays)
    content = {
        "made_of": made_of(data, pairs[0]),
        "data": {**dataclasses.asdict(data_record(images)), "test_images": test_loader(images).images},
        "teacher": {
            **_cost(teacher, look),
            "test": found.score,
            "val": trusted.score,
            "notes": trusted.notes,
            "calibration_error": found.calibration_error,
        },
        "students": students,
    }
    write_text(folder / f"{REFERENCE}.json", dump_json(content))


def made_of(data: DataSettings, networks: PairSettings) -> dict[str, Any]:
    """What the reference depends on beside students and methods: where it differs, it is measured again."""
    settings = flat_settings(data)
    settings |= {name: value for name, value in flat_settings(networks).items() if name.startswith("teacher")}
    folder = run_folder(networks.teacher)
    weights = networks.teacher_weights or (None if folder is None else str(folder / LAST_WEIGHTS))
    return {
        **{name: value for name, value in settings.items() if name not in MAY_CHANGE_ON_RESUME},
        "teacher_sha256": None if weights is None else sha256(weights_file(weights, what="the teacher")),
    }


def _cost(network: OpenedNetwork, look: type[Look[Any]]) -> dict[str, Any]:
    """Name, parameters, and floating-point operations for one image (a multiplication and an addition count as two)."""
    extractor = network.extractor.cpu().eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        look.run_once(extractor, network.card.input_size)
    parameters = sum(p.numel() for p in extractor.network.parameters())
    return {"name": network.card.name, "parameters": parameters, "flops": counter.get_total_flops()}


def _method(
    method: str, pair: PairSettings, images: Images, training: TrainSettings, task: AnyTask, teacher: OpenedNetwork
) -> dict[str, Any] | None:
    """A method's parts for this pair, and its cost of training; None where it cannot be built: its cells tell why."""
    student = open_student(pair, images, task=task, seed=training.seed)
    try:
        distiller = build_distiller(
            method,
            student=student.extractor,
            teacher=teacher.extractor.cpu(),
            image_size=images.image_size,
            task=task.objective(training, images),
            images=images.train.images,
        )
    except Exception:  # whatever it is, the other methods are not affected
        return None
    terms = [term for term in distiller.terms if isinstance(term, Term)]
    known = MethodParts(
        parts=[name for term in terms for name in term.named_weights],
        losses=list(dict.fromkeys(term.name for term in terms)),
        looks_inside=any(term.looks_inside for term in terms),
    )
    return {
        **dataclasses.asdict(known),
        "trained_parameters": sum(p.numel() for p in distiller.trainable_parameters()),
        "training_flops": _training_flops(distiller, task.look.some_batch(images)),
    }


def _training_flops(distiller: Distiller, batch: Batch) -> float | None:
    """Operations of a training step for each image, teacher and losses included, as far as torch counts them."""
    distiller.train()
    try:
        with FlopCounterMode(display=False) as counter:
            distiller(batch).total.backward()
    except Exception:  # a loss that needs more than a few images, or a defect: its cells will tell
        return None
    return counter.get_total_flops() / len(batch)


def peak_memory() -> int:
    """Bytes: of the tensors on the GPU, or of this process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
