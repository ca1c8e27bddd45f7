"""A network as an ONNX file, which exists only once its outputs were found to be the network's."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from reldistill.core.checks import UserError, one_line
from reldistill.core.safe_files import folder_beside, write_bytes
from reldistill.tasks.base import GraphForm

INPUT = "images"


@contextlib.contextmanager
def onnx_file(target: Path, form: GraphForm) -> Iterator[Callable[[np.ndarray], list[np.ndarray]]]:
    """Export a network, and put the file in its place when the block ends without an error.

    Args:
        target: the file.
        form: the network, and how it is exported.

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
    with folder_beside(target) as folder:
        part = folder / "graph.onnx"
        _export(form, part)
        if form.properties:
            graph = onnx.load(part)
            onnx.helper.set_model_props(graph, dict(form.properties))
            onnx.save(graph, part)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(part, options, providers=["CPUExecutionProvider"])
        yield lambda given: session.run([*form.outputs], {INPUT: given})
        write_bytes(target, part.read_bytes())


def _export(form: GraphForm, part: Path) -> None:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        try:
            torch.onnx.export(
                form.network,
                (form.example,),
                part,
                input_names=[INPUT],
                output_names=[*form.outputs],
                verbose=False,
                **form.options,
            )
        except OSError:
            raise
        except Exception as error:
            raise UserError(
                f"torch {torch.__version__} cannot export this network to ONNX: {one_line(error)}"
            ) from error
