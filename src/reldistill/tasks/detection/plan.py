"""What a method's terms between two detectors are built from."""

from __future__ import annotations

import math

from reldistill.core.checks import UserError
from reldistill.core.types import LevelInfo
from reldistill.methods.plan import PairPlan
from reldistill.networks.adapters import PyramidAdapter
from reldistill.tasks.detection.networks.detector_extract import DetectorExtractor


class DetectorPlan(PairPlan[DetectorExtractor]):
    """What a method for detectors builds its terms from."""

    def pairs(self, *, smallest: int = 1) -> list[tuple[LevelInfo, LevelInfo]]:
        """The user's pairs of levels, else all levels of equal stride, from fine to coarse.

        Args:
            smallest: the fewest cells along a side that a matched level may have.
        """
        if self.levels:
            return self.chosen_pairs()
        ours, theirs = (network.stages(self.image_size) for network in (self.student, self.teacher))
        at_stride = {_octave(level): level for level in theirs}
        pairs = [(level, at_stride[_octave(level)]) for level in ours if _octave(level) in at_stride]
        if not pairs:
            raise UserError(
                f"{self.student.name} ({', '.join(level.name for level in ours)}) and {self.teacher.name} "
                f"({', '.join(level.name for level in theirs)}) share no stride: give the levels to pair (--levels)"
            )
        large = [pair for pair in pairs if min(min(level.height, level.width) for level in pair) >= smallest]
        if not large:
            raise UserError(
                f"{self.student.name} and {self.teacher.name} share no level of {smallest}x{smallest} cells or more at "
                f"{self.image_size}x{self.image_size}: give larger images"
            )
        return large

    def adapter(self, student: LevelInfo, teacher: LevelInfo) -> str | None:
        """Name of the adapter between two levels, as in `Plan`; it fits maps of any size, as images have many."""
        fixed = self.student.fixed_size or self.teacher.fixed_size
        if student.channels == teacher.channels and student.stride == teacher.stride and not fixed:
            return None
        name = f"{student.name}->{teacher.name}"
        if name not in self.adapters:
            self.adapters[name] = PyramidAdapter(student.channels, teacher.channels)
        return name


def _octave(level: LevelInfo) -> int:
    return round(math.log2(level.stride))
