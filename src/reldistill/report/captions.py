"""What the page says under its pictures: what one sees, and what a good result looks like. Plain text, no markup."""

from __future__ import annotations

COMPARISON = """
Accuracy is the share of validation images whose class comes out first. The 95 % interval says how far it may move with
another draw of such images (Wilson). Gains are over the student alone at the last epoch, ± half their 95 % interval,
which is drawn beside them. Green marks a gain that the draw of images does not explain: the interval keeps clear of 0
and, where it is on record which images each network got right, the exact paired test (McNemar) gives p < 0.05. The best
epoch was picked on these same images and flatters every run a little.
"""

COMPARISON_AP = """
AP is COCO’s average precision, the mean over IoU 0.5 to 0.95 and over the classes, on the validation images. The 95 %
interval says how far it may move with another draw of such images (500 draws with replacement, corrected for their
bias). Gains are over the student alone at the last epoch, ± half their 95 % interval over the same draws for both,
which is drawn beside them; green marks a gain whose interval keeps clear of 0. The best epoch was picked on these same
images and flatters every run a little.
"""

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

BOXES = """
The boxes that are labelled, and those that each network finds with a score of 0.3 or more, each class in its own
colour; a box’s class and score show when the pointer rests on it. The attention is the teacher’s, as SEKD weighs
positions by it: dark is where little weight lies. A good student finds what its teacher finds, with boxes as tight.
"""

ERRORS = """
Wrong detections and missed objects, each counted once, after TIDE (Bolya et al., ECCV 2020): the right place with
another class, the right class with a loose box (IoU 0.1 to 0.5), both, a second box on an object that has been found,
nothing there at all, and objects that no detection touches. The bars say how many points of AP50 would be gained were
that kind of error mended alone; small objects are below 32² pixels, large ones above 96². Distillation should shorten
the student’s bars towards the teacher’s.
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
