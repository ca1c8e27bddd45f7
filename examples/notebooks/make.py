"""python examples/notebooks/make.py: run three examples part by part and write them as notebooks with what they print.

A part of a script begins with a line `# %% What it is`. Paths of this machine do not get in: the scripts run in a
folder of their own and print none.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[1]
NOTEBOOKS = {name: Path(__file__).parent / f"{name}.ipynb" for name in ("loss_alone", "own_images", "detection")}
MARK = "# %% "


def parts(script: str) -> list[tuple[str, str]]:
    """(what it is, code) for each part; the first is what the script's docstring says."""
    title, _, rest = script.removeprefix('"""').partition('"""\n')
    first, *others = f"\n{rest}".split(f"\n{MARK}")
    found = [(f"# {title}", first.strip("\n"))]
    for other in others:
        what, _, code = other.partition("\n")
        found.append((what, code.strip("\n")))
    return found


def notebook(script: str, outputs: list[str] | None = None) -> dict[str, Any]:
    """The notebook of a script, with what each of its parts printed."""
    cells: list[dict[str, Any]] = []
    for place, (what, code) in enumerate(parts(script)):
        printed = outputs[place] if outputs else ""
        cells.append({"cell_type": "markdown", "id": f"text-{place}", "metadata": {}, "source": _lines(what)})
        cells.append(
            {
                "cell_type": "code",
                "id": f"code-{place}",
                "execution_count": place + 1,
                "metadata": {},
                "outputs": [{"name": "stdout", "output_type": "stream", "text": _lines(printed)}] if printed else [],
                "source": _lines(code),
            }
        )
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def run(script: str) -> list[str]:
    """What each part prints."""
    names: dict[str, Any] = {"__name__": "__main__"}
    outputs, here = [], Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for _, code in parts(script):
                with contextlib.redirect_stdout(io.StringIO()) as printed:
                    exec(compile(code, "part", "exec"), names)
                outputs.append(printed.getvalue())
        finally:
            os.chdir(here)
    return outputs


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def main() -> None:
    """Write all notebooks."""
    for name, path in NOTEBOOKS.items():
        script = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
        path.write_text(
            json.dumps(notebook(script, run(script)), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
