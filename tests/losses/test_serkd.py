from __future__ import annotations

import dataclasses
import inspect
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import slow_references as slow
from reldistill.losses.serkd import SeRKD, SeRKDSettings, serkd_loss
from reldistill.relations.pairwise import angle_loss, distance_loss
from reldistill.relations.superpixels import merge, superpixels_and_assignment
from reldistill.relations.tokens import map_to_tokens, tokenise

SEEDS = st.integers(0, 2**31)
ASSIGNMENTS = pytest.mark.parametrize("assignment", ["own", "teacher"])
NEIGHBOURHOODS = pytest.mark.parametrize("neighbourhood", ["all", "local"])


def maps(*, student=(2, 3, 6, 6), teacher=(2, 5, 6, 6), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(size, generator=generator, dtype=torch.float64) for size in (student, teacher))


def rotated(feature_map, seed):
    dim = feature_map.shape[1]
    q, _ = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed)).double())
    return torch.einsum("bdhw,de->behw", feature_map, q)


@NEIGHBOURHOODS
@pytest.mark.parametrize("iterations", [1, 2])
@pytest.mark.parametrize(
    ("student", "teacher", "cell", "grid"),
    [
        ((2, 3, 6, 6), (2, 5, 6, 6), 2, (3, 3)),
        ((2, 3, 7, 5), (2, 4, 6, 8), 2, (3, 3)),
        ((1, 2, 9, 8), (1, 4, 4, 5), 3, (2, 2)),
        ((1, 2, 3, 3), (1, 4, 3, 3), 1, (3, 3)),
    ],
)
@pytest.mark.usefixtures("each_form")
def test_own_assignment_matches_the_loops(student, teacher, cell, grid, iterations, neighbourhood):
    pair = maps(student=student, teacher=teacher)
    settings_ = {"iterations": iterations, "local": neighbourhood == "local"}
    merged = [
        torch.tensor([slow.superpixels(image, grid, **settings_)[0] for image in part], dtype=torch.float64)
        for part in pair
    ]
    parts = SeRKD(cell=cell, iterations=iterations, neighbourhood=neighbourhood).parts(*pair)
    assert parts["distance"].item() == pytest.approx(slow.distance_loss(*merged), rel=1e-8)
    assert parts["angle"].item() == pytest.approx(slow.angle_loss(*merged), rel=1e-8)


@pytest.mark.usefixtures("each_form")
@NEIGHBOURHOODS
@pytest.mark.parametrize("student_grid", [(6, 6), (4, 4), (9, 7)])
def test_teachers_assignment_matches_the_loops(student_grid, neighbourhood):
    """The dense Q of a slow loop, resized as M maps to the student's grid, its columns scaled again."""
    student, teacher = maps(student=(2, 3, *student_grid))
    grid = (2, 2) if student_grid == (4, 4) else (3, 3)
    found = [slow.superpixels(image, grid, local=neighbourhood == "local") for image in teacher]
    theirs, q = (torch.tensor(part, dtype=torch.float64) for part in zip(*found, strict=True))
    q = q.mT.unflatten(2, (6, 6))
    if student_grid != (6, 6):
        q = F.interpolate(q, size=student_grid, mode="bilinear", align_corners=False)
    q = q.flatten(2)
    ours = (q / q.sum(dim=2, keepdim=True)) @ map_to_tokens(student)
    parts = SeRKD(assignment="teacher", neighbourhood=neighbourhood).parts(student, teacher)
    assert parts["distance"].item() == pytest.approx(slow.distance_loss(ours, theirs), rel=1e-8)
    assert parts["angle"].item() == pytest.approx(slow.angle_loss(ours, theirs), rel=1e-8)


def test_default_weights_are_one_to_two():
    pair = maps()
    parts = SeRKD().parts(*pair)
    assert list(parts) == ["distance", "angle"]
    expected = parts["distance"] + 2 * parts["angle"]
    torch.testing.assert_close(serkd_loss(*pair), expected)
    torch.testing.assert_close(SeRKD()(*pair), expected)
    torch.testing.assert_close(serkd_loss(*pair, distance_weight=0, angle_weight=3), 3 * parts["angle"])


def test_function_and_class_take_the_settings_of_the_dataclass():
    fields = {field.name: field.default for field in dataclasses.fields(SeRKDSettings)}
    function = dict(list(inspect.signature(serkd_loss).parameters.items())[2:])
    assert function == dict(inspect.signature(SeRKD).parameters)
    assert {name: parameter.default for name, parameter in function.items()} == fields
    assert re.findall(r"^    (\w+): ", inspect.getdoc(SeRKDSettings), re.M)[: len(fields)] == list(fields)


@pytest.mark.parametrize(
    "settings_",
    [
        {"cell": 3},
        {"iterations": 2},
        {"assignment": "teacher"},
        {"neighbourhood": "local"},
        {"student_tokeniser": "max"},
        {"student_tokeniser": "none"},
        {"teacher_tokeniser": "max"},
        {"teacher_tokeniser": "none"},
        {"largest_grid": 8},
    ],
    ids=str,
)
def test_every_setting_reaches_the_function(settings_):
    """And changes the result, so that this test can fail."""
    pair = maps(student=(1, 3, 24, 24), teacher=(1, 4, 24, 24))
    found = serkd_loss(*pair, **settings_).item()
    assert found == SeRKD(**settings_)(*pair).item()
    assert abs(found - serkd_loss(*pair).item()) > 1e-6


def test_tokens_are_their_map_and_never_pooled():
    student, teacher = maps(student=(2, 3, 18, 18), teacher=(2, 5, 9, 9))
    found = serkd_loss(map_to_tokens(student), map_to_tokens(teacher), largest_grid=4)
    expected = serkd_loss(student, teacher, student_tokeniser="none", teacher_tokeniser="none")
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    assert abs(serkd_loss(student, teacher, largest_grid=4).item() - expected.item()) > 1e-6


@pytest.mark.parametrize("pooling", ["average", "max"])
def test_large_maps_are_tokenised(pooling):
    student, teacher = maps(student=(1, 3, 34, 20), teacher=(1, 4, 9, 5))
    small = tokenise(student, pooling=pooling)
    assert small.shape[2:] == (9, 5)
    found = serkd_loss(student, teacher, student_tokeniser=pooling)
    assert found.item() == serkd_loss(small, teacher, student_tokeniser="none").item()


# Invariances.


@given(seed=SEEDS, which=st.sampled_from([0, 1]), assignment=st.sampled_from(["own", "teacher"]))
@settings(max_examples=20, deadline=None)
def test_rotation_and_reflection(seed, which, assignment):
    pair = list(maps(seed=seed))
    before = serkd_loss(*pair, assignment=assignment)
    pair[which] = rotated(pair[which], seed)
    torch.testing.assert_close(serkd_loss(*pair, assignment=assignment), before, rtol=1e-6, atol=1e-12)


@given(seed=SEEDS, scale=st.floats(1e-3, 1e3), grid=st.sampled_from([(6, 6), (4, 5), (8, 7)]))
@settings(max_examples=20, deadline=None)
def test_translation_and_positive_scale_of_the_student_with_teacher_assignment(seed, scale, grid):
    student, teacher = maps(student=(2, 3, *grid), seed=seed)
    moved = scale * student + torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)[:, None, None]
    before = serkd_loss(student, teacher, assignment="teacher")
    torch.testing.assert_close(serkd_loss(moved, teacher, assignment="teacher"), before, rtol=1e-6, atol=1e-12)


@given(seed=SEEDS, scale=st.floats(1e-2, 1e2), which=st.sampled_from([0, 1]))
@settings(max_examples=20, deadline=None)
def test_translation_and_positive_scale_of_merged_tokens(seed, scale, which):
    merged = list(SeRKD().superpixels(*maps(seed=seed)))
    before = distance_loss(*merged), angle_loss(*merged)
    merged[which] = scale * merged[which] + 7
    torch.testing.assert_close((distance_loss(*merged), angle_loss(*merged)), before, rtol=1e-6, atol=1e-12)


@given(seed=SEEDS, assignment=st.sampled_from(["own", "teacher"]))
@settings(max_examples=10, deadline=None)
def test_order_of_the_images(seed, assignment):
    student, teacher = maps(student=(4, 3, 6, 6), teacher=(4, 5, 6, 6), seed=seed)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    found = serkd_loss(student[order], teacher[order], assignment=assignment)
    torch.testing.assert_close(found, serkd_loss(student, teacher, assignment=assignment), rtol=1e-9, atol=0)


@ASSIGNMENTS
@NEIGHBOURHOODS
def test_zero_for_a_rotated_teacher(assignment, neighbourhood):
    _, teacher = maps()
    loss = SeRKD(assignment=assignment, neighbourhood=neighbourhood)
    assert loss(rotated(teacher, 0), teacher).item() < 1e-12
    assert loss(*maps()).item() > 1e-3


# Gradients, extremes.


@pytest.mark.usefixtures("each_form")
@ASSIGNMENTS
@NEIGHBOURHOODS
@pytest.mark.parametrize("student_size", [(2, 2, 4, 5), (1, 2, 6, 6)])
def test_gradcheck(assignment, neighbourhood, student_size):
    student, teacher = maps(student=student_size, teacher=(student_size[0], 3, 5, 4))
    loss = SeRKD(assignment=assignment, neighbourhood=neighbourhood)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), student.requires_grad_(), atol=1e-7)


@pytest.mark.usefixtures("each_form")
@ASSIGNMENTS
def test_no_gradient_to_the_teacher(assignment):
    student, teacher = (part.requires_grad_() for part in maps())
    serkd_loss(student, teacher, assignment=assignment).backward()
    assert teacher.grad is None
    assert student.grad.abs().max() > 0


@pytest.mark.usefixtures("each_form")
@ASSIGNMENTS
@NEIGHBOURHOODS
@pytest.mark.parametrize("value", [0.0, 0.1, 6e4])
def test_constant_maps(assignment, neighbourhood, value):
    """A student with the same features everywhere gets no pull, whatever roundings its superpixels carry."""
    _, teacher = maps()
    constant = torch.full((2, 3, 7, 7), value, requires_grad=True)
    loss = serkd_loss(constant, teacher.float(), assignment=assignment, neighbourhood=neighbourhood)
    loss.backward()
    assert loss.isfinite()
    assert constant.grad.abs().max() == 0.0
    student = maps()[0].float().requires_grad_()
    silent = torch.full((2, 5, 7, 7), value)
    loss = serkd_loss(student, silent, assignment=assignment, neighbourhood=neighbourhood)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


@pytest.mark.usefixtures("each_form")
@ASSIGNMENTS
@pytest.mark.parametrize(("size", "superpixels"), [((1, 1), 1), ((2, 2), 1), ((2, 3), 2)])
def test_one_or_two_superpixels_are_a_differentiable_zero(assignment, size, superpixels):
    student, teacher = maps(student=(2, 3, *size))
    loss = SeRKD(assignment=assignment)
    assert loss.superpixels(student, teacher)[0].shape[1] == superpixels
    student.requires_grad_()
    value = loss(student, teacher)
    assert value.item() == pytest.approx(0.0, abs=1e-14)
    value.backward()
    assert student.grad.abs().max() < 1e-12


@pytest.mark.usefixtures("each_form")
@ASSIGNMENTS
@NEIGHBOURHOODS
def test_half_precision_of_any_magnitude(assignment, neighbourhood):
    student, teacher = ((6e4 * part.sign()).half() for part in maps())
    student.requires_grad_()
    loss = serkd_loss(student, teacher, assignment=assignment, neighbourhood=neighbourhood)
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    loss.backward()
    assert student.grad.isfinite().all()


@pytest.mark.usefixtures("unchecked_types")
@ASSIGNMENTS
@NEIGHBOURHOODS
@pytest.mark.usefixtures("traceable")
@pytest.mark.slow
def test_compiled_under_autocast_it_is_one_graph_of_the_same_value(assignment, neighbourhood):
    """Tokens of bf16 networks on uneven cells; what is inside is computed in float32.

    PyTorch compiles the backward pass under the forward's autocast; so it is run under it here in both.
    """
    torch._dynamo.reset()
    student, teacher = (part.bfloat16() for part in maps(student=(2, 3, 7, 5), teacher=(2, 5, 6, 6)))
    loss = SeRKD(assignment=assignment, neighbourhood=neighbourhood)
    found = []
    for function in (loss, torch.compile(loss, backend="aot_eager", fullgraph=True)):
        given_ = student.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = function(given_, teacher)
            gradient = torch.autograd.grad(value, given_)
        assert value.dtype == torch.float32
        found += [(value.detach(), *gradient)]
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-6, atol=0)
    torch.testing.assert_close(found[1][1], found[0][1])


def test_superpixels_that_are_compared_are_those_drawn():
    student, teacher = maps()
    ours, theirs = SeRKD(assignment="teacher").superpixels(student, teacher)
    merged, assignment = superpixels_and_assignment(teacher, grid=(3, 3))
    assert torch.equal(theirs, merged)
    assert torch.equal(ours, merge(student, assignment))


# Misuse.


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"cell": 0}, "cell must be at least 1, got 0"),
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"assignment": "student"}, "assignment must be one of own, teacher, got 'student'"),
        ({"neighbourhood": "near"}, "neighbourhood must be one of all, local, got 'near'"),
        ({"student_tokeniser": "mean"}, "student_tokeniser must be one of average, max, none, got 'mean'"),
        ({"teacher_tokeniser": "mean"}, "teacher_tokeniser must be one of average, max, none, got 'mean'"),
        ({"largest_grid": 0}, "largest_grid must be at least 1, got 0"),
        ({"cell": 2.0}, "cell must be a whole number, got 2.0"),
        ({"angle_weight": "2"}, "angle_weight must be a number, got '2'"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_settings_are_checked_when_built(settings_, message):
    with pytest.raises(ValueError, match=message):
        SeRKD(**settings_)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ((2, 3), (2, 5, 6, 6), r"student: expected \(B, C, H, W\)"),
        ((2, 3, 6, 6), (2, 5), r"teacher: expected \(B, C, H, W\)"),
        ((2, 12, 3), (2, 5, 6, 6), "student: expected N patch tokens of a square grid, got N = 12"),
        ((2, 3, 6, 6), (2, 197, 3), "teacher: expected N patch tokens of a square grid, got N = 197"),
        ((2, 3, 6, 6), (3, 5, 6, 6), "B is 2 in the student and 3 in the teacher"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_wrong_axes_are_named(student, teacher, message):
    with pytest.raises(ValueError, match=message):
        serkd_loss(torch.zeros(student), torch.zeros(teacher))
