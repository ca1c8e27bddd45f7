"""reldistill: distil the relations inside a large vision model into a small one.

The names below are found where they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reldistill.build import build_distiller
    from reldistill.checks import UserError
    from reldistill.data.classification import ImageData, load_images
    from reldistill.features.detector_extract import DetectorExtractor
    from reldistill.features.detectors import load_detector
    from reldistill.features.extract import Extractor
    from reldistill.features.zoo import load_network
    from reldistill.run import distill, evaluate
    from reldistill.step.curriculum import WarmUp
    from reldistill.step.distiller import Distiller
    from reldistill.step.term import Term
    from reldistill.tasks.classification import Classification
    from reldistill.tasks.detection import Detection
    from reldistill.train.module import DistillationModule
    from reldistill.train.settings import DataSettings, ModelSettings, PairSettings, TrainSettings
    from reldistill.types import Batch, Boxes, Features, LevelInfo, StepOutput

__version__ = "0.1.0"

# `reldistill.run.train` is not among them: `reldistill.train` is a package.
__all__ = [
    "Batch",
    "Boxes",
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
    "distill",
    "evaluate",
    "load_detector",
    "load_images",
    "load_network",
]

_MODULES = {
    "build": ["build_distiller"],
    "checks": ["UserError"],
    "data.classification": ["ImageData", "load_images"],
    "features.detector_extract": ["DetectorExtractor"],
    "features.detectors": ["load_detector"],
    "features.extract": ["Extractor"],
    "features.zoo": ["load_network"],
    "run": ["distill", "evaluate"],
    "step.curriculum": ["WarmUp"],
    "step.distiller": ["Distiller"],
    "step.term": ["Term"],
    "tasks.classification": ["Classification"],
    "tasks.detection": ["Detection"],
    "train.module": ["DistillationModule"],
    "train.settings": ["DataSettings", "ModelSettings", "PairSettings", "TrainSettings"],
    "types": ["Batch", "Boxes", "Features", "LevelInfo", "StepOutput"],
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
