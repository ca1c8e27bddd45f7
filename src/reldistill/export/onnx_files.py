"""A network as an ONNX file that is there only when it has been run and found to say the same."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reldistill.core.checks import UserError
from reldistill.core.safe_files import write_bytes
from reldistill.networks.weights import one_line

INPUT = "images"


@contextlib.contextmanager
def onnx_file(
    target: Path,
    network: nn.Module,
    images: Tensor,
    *,
    outputs: Sequence[str],
    properties: Mapping[str, str] | None = None,
    **exported: Any,
) -> Iterator[Callable[[np.ndarray], list[np.ndarray]]]:
    """Export a network, and put the file in its place when the block ends without an error.

    Args:
        target: the file.
        network: images → tensors, in eval mode.
        images: an example.
        outputs: names of the tensors.
        properties: what the file says of itself, name → text.
        **exported: how, for torch.onnx.export.

    Yields:
        images → outputs, by the file that was written, in onnxruntime.

    Raises:
        UserError: a package is missing, or torch cannot export this network.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UserError(f"ONNX export needs {error.name}: pip install 'reldistill[onnx]'") from error
    part = target.with_name(f".{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        _export(network, images, part, output_names=[*outputs], **exported)
        if properties:
            graph = onnx.load(part)
            onnx.helper.set_model_props(graph, dict(properties))
            onnx.save(graph, part)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(part, options, providers=["CPUExecutionProvider"])
        yield lambda given: session.run([*outputs], {INPUT: given})
        write_bytes(target, part.read_bytes())
    finally:
        part.unlink(missing_ok=True)


def _export(network: nn.Module, images: Tensor, part: Path, **exported: Any) -> None:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        try:
            torch.onnx.export(network, (images,), part, input_names=[INPUT], verbose=False, **exported)
        except OSError:
            raise
        except Exception as error:
            raise UserError(
                f"torch {torch.__version__} cannot export this network to ONNX: {one_line(error)}"
            ) from error
