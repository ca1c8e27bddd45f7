"""What the page says under its pictures: what one sees, and what a good result looks like. Plain text, no markup."""

from __future__ import annotations

SCORES = """
On the validation images; the number is that of the last. The student alone is the grey dashed line, a
teacher a level line. A method that helps lies above the student alone to the end, not only early on. The first third of
a run may lie below the scale.
"""

PARTS = """
Epoch means of what is minimised, each part with its weight, on logarithmic axes; the parts add up to the total. In a
good run every part falls and none stays far above the others; a part that lies orders of magnitude below the rest has
no say.
"""

SUPERPIXELS = """
How the teacher, and the student after each run, merge the patches of an image: every patch belongs to the superpixel
token it contributes to most. White lines are the borders; a colour is the same superpixel in every row. The percentage
is the share of patches that a student gives to the same superpixel as its teacher. A good student cuts objects where
its teacher does; a regular grid means that the tokens tell patches apart by place only.
"""

COMPONENTS = """
The teacher’s first three principal components over all places of a batch, as red, green and blue: places of one colour
mean the same to it. The student’s colours are its best linear prediction of them, so that a colour means the same in
every row; the percentage is the share of their variance that it explains. A student that has taken over what its
teacher sees paints objects in the teacher’s colours, from its own finer or coarser grid.
"""

GRAPHS = """
Each row and column is a channel, its colour how alike two channels respond (cosine similarity, averaged over a batch;
what lies beyond an end of the scale has the end’s colour). Channels stand in the order of the teacher’s Fiedler vector,
so that groups that respond together form blocks. All runs share one colour scale. The student has learned the teacher’s
relations where its matrix shows the same blocks, the difference is pale, and the two spectra (eigenvalues of the
normalised Laplacian; small ones count the groups) lie on each other. A student’s channel has a partner in the
teacher only where a loss compared the two channel by channel without an adapter between; elsewhere, as in the student
alone, the matrices need not match and only the spectra can be compared.
"""


def caption(text: str) -> str:
    """A caption as a paragraph of the page."""
    return f'<p class="caption">{" ".join(text.split())}</p>'
