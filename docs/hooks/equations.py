"""Typesets the equations of the pages when the site is built, so that reading them needs no script and no network.

LaTeX between dollar signs becomes MathML, and the site brings the font that draws it: STIX Two Math, cut down to the
characters that equations use.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import ziamath
from fontTools import subset
from fontTools.ttLib import TTFont
from math_core import LatexError, LatexToMathML
from mkdocs.exceptions import PluginError

FONT = "assets/equations.woff"
EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
# Latin, Greek, punctuation, superscripts and letter-like signs, arrows, operators, brackets, mathematical alphabets.
CHARACTERS = [(0x20, 0x17F), (0x2B0, 0x3FF), (0x2000, 0x22FF), (0x2308, 0x230B), (0x27E6, 0x27EB), (0x1D400, 0x1D7FF)]

_converter = LatexToMathML(fancy_error=False)


def on_page_content(content: str, *, page: Any, **_: Any) -> str:
    """The page's HTML with its equations as MathML; one that is not LaTeX ends the build."""

    def typeset(found: re.Match[str]) -> str:
        try:
            return _converter.convert_with_local_state(html.unescape(found[2]), displaystyle=found[1] == "div")
        except LatexError as error:
            raise PluginError(f"{page.file.src_uri}: {error}: {found[2].strip()}") from error

    return EQUATION.sub(typeset, content)


def on_post_build(*, config: Any, **_: Any) -> None:
    """Write the font beside the pages."""
    font = TTFont(Path(ziamath.__file__).parent / "fonts" / "STIXTwoMath-Regular.ttf")
    # The same file for the same release of the font: no time of day in it.
    font.recalcTimestamp = False
    cut = subset.Subsetter(subset.Options(notdef_outline=True))
    cut.populate(unicodes=[code for first, last in CHARACTERS for code in range(first, last + 1)])
    cut.subset(font)
    font.flavor = "woff"
    path = Path(config["site_dir"]) / FONT
    path.parent.mkdir(parents=True, exist_ok=True)
    font.save(path)
