"""Principal components as colours, against numpy and scikit-learn."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.decomposition import PCA

from reldistill.relations.principal_components import component_colours


def maps(channels: int, side: int, *, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(3, channels, side, side, generator=random) * torch.linspace(3, 0.5, channels).view(1, -1, 1, 1)


def test_the_teacher_s_colours_are_its_components() -> None:
    teacher = maps(6, 4, seed=0)
    _, found, _ = component_colours(maps(5, 4, seed=1), teacher)
    places = teacher.movedim(1, -1).reshape(-1, 6).numpy()
    expected = PCA(3).fit_transform(places)
    for channel in range(3):
        said = found.reshape(-1, 3)[:, channel].numpy().astype(float)
        inside = (said > 0) & (said < 255)
        correlation = np.corrcoef(said[inside], expected[inside, channel])[0, 1]
        assert abs(correlation) > 0.999


def test_a_student_that_is_a_linear_map_of_the_teacher_has_its_colours() -> None:
    teacher = maps(6, 4, seed=0)
    student = torch.einsum("dc,bchw->bdhw", torch.randn(9, 6, generator=torch.Generator().manual_seed(2)), teacher) + 5
    ours, theirs, explained = component_colours(student, teacher)
    assert explained > 0.99
    assert (ours.int() - theirs.int()).abs().max() <= 6
    *_, unrelated = component_colours(maps(4, 4, seed=3), teacher)
    assert 0 <= unrelated < 0.5


def test_grids_and_widths_may_differ_and_the_signs_are_settled() -> None:
    student, teacher = maps(2, 8, seed=1), maps(6, 4, seed=0)
    ours, theirs, explained = component_colours(student, teacher)
    assert (ours.shape, theirs.shape) == ((3, 8, 8, 3), (3, 4, 4, 3))
    again = component_colours(student, teacher)
    assert torch.equal(ours, again[0])
    assert torch.equal(theirs, again[1])
    assert explained <= 1


def test_two_channels_and_constant_maps_make_no_trouble() -> None:
    _, theirs, explained = component_colours(torch.zeros(2, 3, 4, 4), maps(2, 4, seed=0)[:2])
    assert theirs[..., 2].unique().numel() == 1, "there is no third component"
    assert explained == 0
    component_colours(maps(3, 4, seed=0), torch.ones(3, 5, 4, 4))
