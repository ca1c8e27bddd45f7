"""A run's student as a file that needs nothing of this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from reldistill.core.checks import UserError
from reldistill.core.safe_files import write_bytes
from reldistill.export.onnx_files import onnx_file
from reldistill.networks.saved import BEST_WEIGHTS, LAST_WEIGHTS, Normalised, open_network, read_card, sha256
from reldistill.report.record import read_record
from reldistill.tasks.detection.export import export_detector

# The largest difference of logits, relative to their size, that float32 kernels of two runtimes may have.
PARITY = 1e-3


def export_run(
    run: Path, *, format: str = "safetensors", out: Path | None = None, best: bool = False, raw: bool = False
) -> dict[str, Any]:
    """Write a finished run's student.

    Args:
        run: the run's folder.
        format: `safetensors`: the state dict of the bare network; `onnx`: a graph with a free batch axis, compared with
            the network before it counts as written. For a detector see `tasks.detection.export`.
        out: the file; by default `export.FORMAT` or `export-best.FORMAT` in the run's folder.
        best: the best epoch's weights.
        raw: ONNX without the normalisation.

    Raises:
        UserError: when the run isn't finished, the format is unknown, a package is missing, the file can't be written
            or is the run's own, or the ONNX graph computes something else than the network.
    """
    writers = {"safetensors": _write_safetensors, "onnx": _write_onnx}
    if format not in writers:
        raise UserError(f"format '{format}' is not known: there are {', '.join(writers)}")
    read_record(run)
    source = run / (BEST_WEIGHTS if best else LAST_WEIGHTS)
    if not source.is_file():
        raise UserError(f"{run} has no {source.name}: the run is not finished (go on with it by --resume)")
    target = out or run / f"export{'-best' if best else ''}.{format}"
    if target.resolve() in [(run / own).resolve() for own in (LAST_WEIGHTS, BEST_WEIGHTS)]:
        raise UserError(f"{target} is the run's own file: give another --out")
    card = read_card(source)
    if raw and card.detector is not None:
        raise UserError("--raw: a detector's normalisation is part of it")
    result = {"file": str(target), "format": format, "input_size": card.input_size, "classes": list(card.classes)}
    try:
        if card.detector is None:
            result.update(writers[format](_classifier(run, source, raw=raw), target, card.input_size, source))
            result["summary"] = _summary(result, raw=raw)
        else:
            result.update(export_detector(run, card, format=format, target=target, source=source))
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from error
    result["sha256"] = sha256(target)
    return result


def _classifier(run: Path, source: Path, *, raw: bool) -> nn.Module:
    opened = open_network(str(run), role="model", num_classes=None, image_size=None, weights=str(source))
    network = opened.extractor.network.eval()
    return network if raw else Normalised(network, mean=opened.card.mean, std=opened.card.std).eval()


def _write_safetensors(network: nn.Module, target: Path, side: int, source: Path) -> dict[str, Any]:
    write_bytes(target, source.read_bytes())
    return {}


def _write_onnx(network: nn.Module, target: Path, side: int, source: Path) -> dict[str, Any]:
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    more = torch.rand(5, 3, side, side, generator=torch.Generator().manual_seed(1))
    free = ({0: torch.export.Dim("batch")},)
    how: dict[str, Any] = {"dynamic_shapes": free, "dynamo": True, "external_data": False}
    with onnx_file(target, network, images, outputs=["logits"], **how) as graph:
        with torch.no_grad():
            expected = network(more).numpy()
        found = graph(more.numpy())[0]
        difference = float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-12))
        if not difference <= PARITY:
            raise UserError(
                f"the ONNX graph's logits differ from the network's by {difference:.2g} (relative): not written"
            )
    return {"largest_relative_difference": difference}


def _summary(result: dict[str, Any], *, raw: bool) -> str:
    side = result["input_size"]
    text = f"{result['file']}: {result['format']}"
    if result["format"] == "onnx":
        given = "normalised" if raw else "RGB in [0, 1]"
        text += (
            f", images (B, 3, {side}, {side}) {given} → logits (B, {len(result['classes'])}); differs from PyTorch "
            f"by at most {result['largest_relative_difference']:.1e} of the largest logit"
        )
    return text
