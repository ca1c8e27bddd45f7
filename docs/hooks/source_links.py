"""Full names in the pages, such as `reldistill.step.distiller.Distiller`, link to their line in the source.

The source files become pages of the site, so that the links need no network; search leaves them out.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.utils import get_relative_url

SOURCE = Path(__file__).parents[2] / "src"
NAME = re.compile(r"(?<!\">)<code>(reldistill(?:\.\w+)+)</code>")


def on_files(files: Files, *, config: Any, **_: Any) -> Files:
    """Add a page for every source file."""
    for file in sorted((SOURCE / "reldistill").rglob("*.py")):
        name = file.relative_to(SOURCE).as_posix()
        text = file.read_text(encoding="utf-8")
        # A fence of four tildes: the docstrings hold none.
        page = (
            f'---\ntitle: {name}\nsearch:\n  exclude: true\n---\n\n# {name}\n\n~~~~python linenums="1"\n{text}\n~~~~\n'
        )
        files.append(File.generated(config, f"source/{name}.md", content=page, inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def on_page_content(content: str, *, page: Any, **_: Any) -> str:
    """The page's HTML with its full names as links."""

    def linked(found: re.Match[str]) -> str:
        try:
            file, line = place_of(found[1])
        except LookupError as error:
            raise PluginError(f"{page.file.src_uri}: {error}") from None
        url = get_relative_url(f"source/{file}/", page.url)
        return f'<a href="{url}#__codelineno-0-{line}"><code>{found[1].removeprefix("reldistill.")}</code></a>'

    return NAME.sub(linked, content)


def place_of(name: str) -> tuple[str, int]:
    """The file, below `src`, and the line of a module, class, function, method or constant.

    Raises:
        LookupError: there is none of that name.
    """
    words = name.split(".")
    for length in range(len(words), 0, -1):
        base = SOURCE.joinpath(*words[:length])
        for file in (base.with_suffix(".py"), base / "__init__.py"):
            if file.is_file():
                return file.relative_to(SOURCE).as_posix(), _line(file, words[length:], name)
    raise LookupError(f"no module of the name {name}")


def _line(file: Path, path: list[str], name: str) -> int:
    scope, line = ast.parse(file.read_text(encoding="utf-8")).body, 1
    for word in path:
        found = next((node for node in scope if word in _names(node)), None)
        if found is None:
            raise LookupError(f"{file.relative_to(SOURCE)} has no {word}, which {name} asks for")
        scope, line = getattr(found, "body", []), found.lineno
    return line


def _names(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}
