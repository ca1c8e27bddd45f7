"""What is measured of a comparison beside its training: the one look at the test images, and what networks cost."""

from __future__ import annotations

import dataclasses
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from reldistill.build import build_distiller
from reldistill.comparison.cells import Cell, MethodParts
from reldistill.data.classification import ImageData
from reldistill.files import write_arrays, write_text
from reldistill.fit import data_record
from reldistill.report.cells import ARRAYS_FILE, REFERENCE, TEST_FILE, TestRecord, dump_json, read_arrays
from reldistill.run import open_student, open_teacher, trusted_teacher
from reldistill.saved import BEST_WEIGHTS, LAST_WEIGHTS, OpenedNetwork, open_network
from reldistill.step.distiller import Distiller
from reldistill.step.term import Term
from reldistill.task_setup import SETUPS
from reldistill.tasks.classification import Classification
from reldistill.train.settings import PairSettings, TrainSettings
from reldistill.train.trainer import has_gpu, resolve_precision
from reldistill.types import Batch

BINS = 15
SHOWN = 500
MOST_CLASSES = 1000
_COUNTED = 4


@dataclass(frozen=True)
class TestAnswers:
    """What a network said of the test images: (n, K) logits, (n,) labels, (m, D) features of the images `shown`."""

    logits: np.ndarray
    labels: np.ndarray
    features: np.ndarray
    shown: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        """(n,) class indices."""
        return self.logits.argmax(axis=1)

    @property
    def correct(self) -> np.ndarray:
        """(n,) booleans."""
        return self.predicted == self.labels

    @property
    def accuracy(self) -> float:
        """Percent."""
        return 100 * float(self.correct.mean())


@torch.no_grad()
def test_answers(network: OpenedNetwork, images: ImageData, training: TrainSettings) -> TestAnswers:
    """Look at the test images."""
    assert images.test is not None
    device = torch.device("cuda" if has_gpu(training.accelerator) else "cpu")
    precision = resolve_precision(training.precision, training.accelerator)
    extractor = network.extractor.to(device).eval()
    count = images.test.images
    shown = np.linspace(0, count - 1, min(count, SHOWN)).astype(np.int64)
    logits, labels, features = [], [], []
    for batch in images.test:
        batch = batch.to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16-mixed"):
            said = extractor(batch.images, pooled=True)
        assert said.logits is not None
        assert said.pooled is not None
        assert batch.indices is not None
        logits.append(said.logits.float().cpu().numpy())
        labels.append(batch.classes.cpu().numpy())
        features.append(said.pooled.float().cpu().numpy()[np.isin(batch.indices.cpu().numpy(), shown)])
    return TestAnswers(np.concatenate(logits), np.concatenate(labels), np.concatenate(features), shown)


def calibration_error(logits: np.ndarray, labels: np.ndarray, *, bins: int = BINS) -> float:
    """Expected calibration error in percent: |accuracy - confidence|, averaged over the images by bin of confidence.

    Bins are equally wide, open below and closed above (Guo et al., ICML 2017, arXiv 1706.04599).
    """
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    probabilities = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
    confidence = probabilities.max(axis=1)
    gap = (logits.argmax(axis=1) == labels) - confidence
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return 100 * float(np.abs(np.bincount(place, weights=gap, minlength=bins)).sum() / len(labels))


def logit_correlation(logits: np.ndarray) -> np.ndarray:
    """(n, K) → (K, K) correlation of two classes' logits over the images; 0 for a class whose logit never moves."""
    centred = logits.astype(np.float64) - logits.mean(axis=0)
    size = np.sqrt((centred**2).sum(axis=0))
    scaled = centred / np.where(size > 0, size, 1.0)
    return (scaled.T @ scaled).astype(np.float32)


def measure_cell(cell: Cell, folder: Path, images: ImageData, *, reference: Path) -> None:
    """Write `test.npz` and then `test.json` into a finished run's folder."""
    teacher = read_arrays(reference / ARRAYS_FILE)
    answers = {}
    for name, file in (("last", LAST_WEIGHTS), ("best", BEST_WEIGHTS)):
        student = open_network(
            str(folder.absolute()),
            role="student",
            num_classes=len(images.classes),
            image_size=images.image_size,
            weights=str(folder / file),
        )
        answers[name] = test_answers(student, images, cell.training)
    last, best = answers["last"], answers["best"]
    correlation = logit_correlation(last.logits[:, :MOST_CLASSES])
    off = ~np.eye(len(correlation), dtype=bool)
    write_arrays(
        folder / ARRAYS_FILE,
        correct_last=last.correct,
        correct_best=best.correct,
        features=last.features.astype(np.float32),
        correlation=correlation,
    )
    found = TestRecord(
        test_last=last.accuracy,
        test_best=best.accuracy,
        agreement=100 * float((last.predicted == teacher["predicted"]).mean()),
        calibration_error=calibration_error(last.logits, last.labels),
        correlation_gap=float(np.abs(correlation - teacher["correlation"])[off].mean()),
        peak_memory=peak_memory(),
        test_images=len(last.labels),
    )
    write_text(folder / TEST_FILE, dump_json(found))


def measure_reference(
    pairs: Sequence[PairSettings], images: ImageData, training: TrainSettings, methods: Sequence[str], folder: Path
) -> None:
    """Write what all cells have in common: teacher, untrained students, what each method can be told and costs.

    Raises:
        UserError: when networks and data don't go together, or the teacher is no better than guessing.
    """
    setup = SETUPS["classification"]
    teacher = open_teacher(pairs[0], images, setup=setup)
    trusted = trusted_teacher(teacher, images, training, setup=setup)
    answers = test_answers(teacher, images, training)
    arrays = {
        "labels": answers.labels,
        "shown": answers.shown,
        "predicted": answers.predicted,
        "correct": answers.correct,
        "features": answers.features,
        "correlation": logit_correlation(answers.logits[:, :MOST_CLASSES]),
    }
    students = {}
    for number, pair in enumerate(pairs):
        untrained = open_student(pair, images, setup=setup, seed=training.seed)
        students[pair.student] = {
            **_cost(untrained),
            "methods": {method: _method(method, pair, images, training, teacher) for method in methods},
        }
        arrays[f"untrained_{number}"] = test_answers(untrained, images, training).features
    write_arrays(folder / ARRAYS_FILE, **arrays)
    content = {
        "data": {
            **dataclasses.asdict(data_record(images)),
            "test_images": len(answers.labels),
        },
        "teacher": {
            **_cost(teacher),
            "test": answers.accuracy,
            "val": trusted.found["accuracy"],
            "calibration_error": calibration_error(answers.logits, answers.labels),
        },
        "students": students,
    }
    write_text(folder / f"{REFERENCE}.json", dump_json(content))


def _cost(network: OpenedNetwork) -> dict[str, Any]:
    """Name, parameters, and floating-point operations for one image (a multiplication and an addition count as two)."""
    extractor = network.extractor.cpu().eval()
    side = network.card.input_size
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        extractor(torch.rand(1, 3, side, side))
    parameters = sum(p.numel() for p in extractor.network.parameters())
    return {"name": network.card.name, "parameters": parameters, "flops": counter.get_total_flops()}


def _method(
    method: str, pair: PairSettings, images: ImageData, training: TrainSettings, teacher: OpenedNetwork
) -> dict[str, Any] | None:
    """What a method has for this pair, and what it costs to train; None where it cannot be built: its cells say why."""
    student = open_student(pair, images, setup=SETUPS["classification"], seed=training.seed)
    try:
        distiller = build_distiller(
            method,
            student=student.extractor,
            teacher=teacher.extractor.cpu(),
            image_size=images.image_size,
            task=Classification(),
            images=images.train.images,
        )
    except Exception:  # whatever it is, it leaves the other methods alone
        return None
    terms = [term for term in distiller.terms if isinstance(term, Term)]
    known = MethodParts(
        parts=[f"{term.name}.{part}" if part else term.name for term in terms for part in term.weights],
        losses=list(dict.fromkeys(term.name for term in terms)),
        looks_inside=any(term.looks_inside for term in terms),
    )
    return {
        **dataclasses.asdict(known),
        "trained_parameters": sum(p.numel() for p in distiller.trainable_parameters()),
        "training_flops": _training_flops(distiller, images),
    }


def _training_flops(distiller: Distiller, images: ImageData) -> float | None:
    """Operations of a training step for each image, teacher and losses included, as far as torch counts them."""
    random = torch.Generator().manual_seed(0)
    batch = Batch(
        torch.rand(_COUNTED, 3, images.image_size, images.image_size, generator=random),
        torch.arange(_COUNTED) % len(images.classes),
        torch.arange(_COUNTED),
    )
    distiller.train()
    try:
        with FlopCounterMode(display=False) as counter:
            distiller(batch).total.backward()
    except Exception:  # a loss that needs more than a few images, or a defect: its cells will tell
        return None
    return counter.get_total_flops() / _COUNTED


def peak_memory() -> int:
    """Bytes: of the tensors on the GPU, or of this process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
