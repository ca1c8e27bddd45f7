"""reldistill: distil the relations inside a large vision model into a small one.

The names below are found where they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reldistill.comparison.compare import compare
    from reldistill.core.checks import UserError
    from reldistill.core.tasks import register_task
    from reldistill.core.types import Batch, ClassLabels, Features, LevelInfo, StepOutput
    from reldistill.data.image_data import ImageData, load_images
    from reldistill.methods.build import build_distiller
    from reldistill.methods.plan import Choices
    from reldistill.networks.extract import Extractor
    from reldistill.networks.zoo import load_network
    from reldistill.runs.distill import distill
    from reldistill.runs.evaluate import evaluate
    from reldistill.runs.train import train
    from reldistill.step.curriculum import WarmUp
    from reldistill.step.distiller import Distiller
    from reldistill.step.term import Term
    from reldistill.tasks.classification.objective import Classification
    from reldistill.tasks.detection.boxes import Boxes
    from reldistill.tasks.detection.networks.detector_extract import DetectorExtractor
    from reldistill.tasks.detection.networks.detectors import load_detector
    from reldistill.tasks.detection.objective import Detection
    from reldistill.training.module import DistillationModule
    from reldistill.training.settings import DataSettings, ModelSettings, PairSettings, TrainSettings

__version__ = "0.2.0"

__all__ = [
    "Batch",
    "Boxes",
    "Choices",
    "ClassLabels",
    "Classification",
    "DataSettings",
    "Detection",
    "DetectorExtractor",
    "DistillationModule",
    "Distiller",
    "Extractor",
    "Features",
    "ImageData",
    "LevelInfo",
    "ModelSettings",
    "PairSettings",
    "StepOutput",
    "Term",
    "TrainSettings",
    "UserError",
    "WarmUp",
    "build_distiller",
    "compare",
    "distill",
    "evaluate",
    "load_detector",
    "load_images",
    "load_network",
    "register_task",
    "train",
]

_MODULES = {
    "comparison.compare": ["compare"],
    "core.checks": ["UserError"],
    "core.tasks": ["register_task"],
    "core.types": ["Batch", "ClassLabels", "Features", "LevelInfo", "StepOutput"],
    "data.image_data": ["ImageData", "load_images"],
    "methods.build": ["build_distiller"],
    "methods.plan": ["Choices"],
    "networks.extract": ["Extractor"],
    "networks.zoo": ["load_network"],
    "runs.distill": ["distill"],
    "runs.evaluate": ["evaluate"],
    "runs.train": ["train"],
    "step.curriculum": ["WarmUp"],
    "step.distiller": ["Distiller"],
    "step.term": ["Term"],
    "tasks.classification.objective": ["Classification"],
    "tasks.detection.boxes": ["Boxes"],
    "tasks.detection.networks.detector_extract": ["DetectorExtractor"],
    "tasks.detection.networks.detectors": ["load_detector"],
    "tasks.detection.objective": ["Detection"],
    "training.module": ["DistillationModule"],
    "training.settings": ["DataSettings", "ModelSettings", "PairSettings", "TrainSettings"],
}
_MODULE_OF = {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
