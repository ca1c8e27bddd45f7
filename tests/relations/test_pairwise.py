from __future__ import annotations

import math
import shutil
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import slow_references as slow
from observers import LargestTensor
from reldistill.relations.kernels import triples
from reldistill.relations.kernels.switch import fast_kernels
from reldistill.relations.pairwise import angle_loss, distance_and_angle, distance_loss, distances, gram

LOSSES = pytest.mark.parametrize("loss", [distance_loss, angle_loss])
SLOW = {distance_loss: slow.distance_loss, angle_loss: slow.angle_loss}
SEEDS = st.integers(0, 2**31)


def sets(*, images=2, count=6, student_dim=3, teacher_dim=5, seed=0, dtype=torch.float64):
    """Two sets (B, M, D) and (B, M, D')."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (images, count, student_dim), (images, count, teacher_dim)
    return tuple(torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes)


def gradient(loss, student, teacher):
    student = student.detach().requires_grad_()
    (found,) = torch.autograd.grad(loss(student, teacher), student)
    return found


def rotation(dim, generator):
    """A random orthogonal matrix of either handedness."""
    q, r = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
    return q * r.diagonal().sign()


# Against the equations.


def test_gram_is_the_inner_products():
    tokens, _ = sets()
    expected = [[[slow.dot(a, b) for b in image] for a in image] for image in tokens.tolist()]
    torch.testing.assert_close(gram(tokens), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-14)


@pytest.mark.usefixtures("each_form")
@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_distances_are_euclidean(dtype, tolerance, offset):
    tokens = (sets()[0] + offset).to(dtype)
    expected = [[[slow.norm(a, b) for b in image] for a in image] for image in tokens.double().tolist()]
    torch.testing.assert_close(
        distances(tokens).double(), torch.tensor(expected, dtype=torch.float64), rtol=tolerance, atol=0
    )


@pytest.mark.usefixtures("each_form")
@LOSSES
@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("count", [3, 4, 7])
def test_float64_matches_the_loop(loss, count, offset):
    student, teacher = (tokens + offset for tokens in sets(count=count, seed=count))
    assert loss(student, teacher).item() == pytest.approx(SLOW[loss](student, teacher), rel=1e-9)


@LOSSES
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_float32_matches_the_loop(loss, offset):
    student, teacher = ((tokens + offset).float() for tokens in sets(count=9))
    assert loss(student, teacher).item() == pytest.approx(SLOW[loss](student, teacher), rel=1e-4)


@LOSSES
@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_gradient_matches_the_readable_form(loss, dtype, tolerance, offset):
    student, teacher = ((tokens + offset).to(dtype) for tokens in sets(count=11, student_dim=4))
    with fast_kernels(False):
        expected = gradient(loss, student.double(), teacher.double())
    found = gradient(loss, student, teacher).double()
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.usefixtures("each_form")
@LOSSES
def test_gradcheck(loss):
    student, teacher = sets(images=2, count=5)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), student.requires_grad_(), eps=1e-6, atol=1e-8)


@LOSSES
def test_one_pass_gives_both(loss):
    student, teacher = sets()
    name = {distance_loss: "distance", angle_loss: "angle"}[loss]
    assert distance_and_angle(student, teacher)[name].item() == loss(student, teacher).item()


@pytest.mark.parametrize("block", [1, 37, 150, 10**6])
@pytest.mark.parametrize("images", [1, 5])
def test_angle_loss_does_not_depend_on_its_blocks(monkeypatch, block, images):
    student, teacher = sets(images=images, count=9)
    value, slope = angle_loss(student, teacher), gradient(angle_loss, student, teacher)
    monkeypatch.setattr(triples, "_BLOCK_CPU", block)
    torch.testing.assert_close(angle_loss(student, teacher), value, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient(angle_loss, student, teacher), slope, rtol=1e-9, atol=1e-14)


# Known triangles.


@pytest.mark.usefixtures("each_form")
def test_equilateral_against_right_triangle():
    equilateral = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(0.75)]]], dtype=torch.float64)
    right = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    half = math.sqrt(0.5)
    expected = (0.5**2 + 2 * (half - 0.5) ** 2) / 2 / 3
    assert angle_loss(equilateral, right).item() == pytest.approx(expected, rel=1e-12)
    mean = (2 + math.sqrt(2)) / 3
    expected = (2 * (1 - 1 / mean) ** 2 + (1 - math.sqrt(2) / mean) ** 2) / 2 / 3
    assert distance_loss(equilateral, right).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.usefixtures("each_form")
def test_opposite_cosines_are_in_hubers_linear_part():
    """On a line the cosines are ±1; two of three vertices change theirs by 2, each Huber₁(2) = 1.5."""
    student = torch.tensor([[[0.0], [1.0], [2.0]]], dtype=torch.float64)
    teacher = torch.tensor([[[0.0], [2.0], [1.0]]], dtype=torch.float64)
    assert angle_loss(student, teacher).item() == pytest.approx(2 * 1.5 / 3, rel=1e-12)


@pytest.mark.usefixtures("each_form")
def test_far_outlier_is_in_hubers_linear_part():
    """With one of five tokens far off, ψ of its pairs is 2.5 and of the others about 0; the teacher's are all 1."""
    student = torch.zeros(1, 5, 4, dtype=torch.float64)
    student[0, 1:] = 1e-3 * torch.eye(4, dtype=torch.float64)
    student[0, 0] = 1.0
    teacher = torch.eye(5, dtype=torch.float64).unsqueeze(0)
    assert distance_loss(student, teacher).item() == pytest.approx(slow.distance_loss(student, teacher), rel=1e-9)
    assert distance_loss(student, teacher).item() == pytest.approx((8 * (1.5 - 0.5) + 12 * 0.5) / 20, rel=1e-2)


# Invariances.


@LOSSES
@given(seed=SEEDS, student_dim=st.integers(1, 6), teacher_dim=st.integers(1, 6), which=st.sampled_from([0, 1]))
@settings(max_examples=25, deadline=None)
def test_rotation_and_reflection(loss, seed, student_dim, teacher_dim, which):
    pair = list(sets(student_dim=student_dim, teacher_dim=teacher_dim, seed=seed))
    before = loss(*pair)
    pair[which] = pair[which] @ rotation(pair[which].shape[2], torch.Generator().manual_seed(seed))
    torch.testing.assert_close(loss(*pair), before, rtol=1e-7, atol=1e-12)


@LOSSES
@given(seed=SEEDS, shift=st.floats(-1e3, 1e3), which=st.sampled_from([0, 1]))
@settings(max_examples=25, deadline=None)
def test_translation(loss, seed, shift, which):
    pair = list(sets(seed=seed))
    before = loss(*pair)
    pair[which] = pair[which] + shift * torch.linspace(-1, 1, pair[which].shape[2], dtype=torch.float64)
    torch.testing.assert_close(loss(*pair), before, rtol=1e-7, atol=1e-12)


@LOSSES
@given(seed=SEEDS, exponent=st.floats(-100, 100), which=st.sampled_from([0, 1]))
@settings(max_examples=25, deadline=None)
def test_positive_scale(loss, seed, exponent, which):
    pair = list(sets(seed=seed))
    before = loss(*pair)
    pair[which] = pair[which] * 10.0**exponent
    torch.testing.assert_close(loss(*pair), before, rtol=1e-9, atol=1e-14)


@LOSSES
@given(seed=SEEDS)
@settings(max_examples=15, deadline=None)
def test_common_order_of_the_tokens(loss, seed):
    student, teacher = sets(seed=seed)
    order = torch.randperm(student.shape[1], generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(loss(student[:, order], teacher[:, order]), loss(student, teacher), rtol=1e-9, atol=0)


@LOSSES
@given(seed=SEEDS, scale=st.floats(1e-3, 1e3), more=st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_similar_sets_are_zero(loss, seed, scale, more):
    """The teacher's set rotated into more dimensions, moved and scaled; in value and in gradient."""
    _, teacher = sets(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    dim = teacher.shape[2] + more
    student = (
        scale * F.pad(teacher, (0, more)) @ rotation(dim, generator) + torch.randn(dim, generator=generator).double()
    )
    assert loss(student, teacher).item() < 1e-12
    assert gradient(loss, student, teacher).abs().max() < 1e-6 / scale


@pytest.mark.usefixtures("each_form")
@LOSSES
def test_equal_sets_are_exactly_zero(loss):
    _, teacher = sets(dtype=torch.float32)
    assert loss(teacher, teacher).item() == 0.0


@LOSSES
def test_different_sets_are_not_zero(loss):
    """What makes the test above able to fail."""
    assert loss(*sets()).item() > 1e-3


# Coincident tokens and extremes.


@pytest.mark.usefixtures("each_form")
@LOSSES
@pytest.mark.parametrize("where", ["student", "teacher", "both", "elsewhere in both"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_coincident_tokens_match_the_loop(loss, where, dtype):
    student, teacher = sets(count=6, dtype=dtype)
    if where in ("student", "both", "elsewhere in both"):
        student[0, 4] = student[0, 1]
    if where in ("teacher", "both"):
        teacher[0, 4] = teacher[0, 1]
    if where == "elsewhere in both":
        teacher[0, 5] = teacher[0, 1]
        teacher[0, 0] = teacher[0, 1]
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    assert loss(student, teacher).item() == pytest.approx(SLOW[loss](student, teacher), rel=tolerance)
    assert gradient(loss, student, teacher).isfinite().all()


@pytest.mark.usefixtures("each_form")
def test_coincident_tokens_are_at_distance_zero_without_gradient():
    tokens, _ = sets(count=4, dtype=torch.float32)
    tokens[:, 3] = tokens[:, 0]
    tokens.requires_grad_()
    found = distances(tokens)
    assert found[:, 0, 3].tolist() == [0.0, 0.0]
    assert found.diagonal(dim1=1, dim2=2).abs().max() == 0.0
    found[:, 0, 3].sum().backward()
    assert tokens.grad.abs().max() == 0.0


@pytest.mark.usefixtures("each_form")
@LOSSES
def test_a_coincident_pair_pulls_nothing_apart(loss):
    """Its gradient is that of the rest: the same as of a loop over the rest, by finite differences."""
    student, teacher = sets(images=1, count=5)
    student[0, 4] = student[0, 1]
    found = gradient(loss, student, teacher)
    step = 1e-6
    for i, d in ((0, 0), (2, 1), (3, 2)):  # moving these leaves the pair coincident
        ends = []
        for sign in (1, -1):
            moved = student.clone()
            moved[0, i, d] += sign * step
            ends.append(SLOW[loss](moved, teacher))
        assert found[0, i, d].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5, abs=1e-9)


@pytest.mark.usefixtures("each_form")
@LOSSES
@pytest.mark.parametrize("value", [0.0, 0.1, 6e4])
@pytest.mark.parametrize("which", [0, 1])
def test_constant_sets_are_finite(loss, value, which):
    pair = [tokens.float() for tokens in sets()]
    pair[which] = torch.full_like(pair[which], value)
    assert loss(*pair).isfinite()
    slope = gradient(loss, *pair)
    assert slope.isfinite().all()
    if which == 0:
        assert slope.abs().max() == 0.0


@pytest.mark.usefixtures("each_form")
@LOSSES
def test_rounding_errors_of_a_constant_have_no_shape(loss):
    """Numbers that differ in their last bits only are one number: no angle, no pull of size 1/rounding."""
    student, teacher = (tokens.float() for tokens in sets(count=8))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(-3, 4, student.shape, generator=generator) * torch.finfo(torch.float32).eps
    constant = 0.7 * (1 + noise)
    assert constant.unique().numel() > 3
    assert gradient(loss, constant, teacher).abs().max() == 0.0
    assert gradient(loss, student, constant[..., :1].expand_as(teacher)).isfinite().all()


@pytest.mark.usefixtures("each_form")
@LOSSES
@pytest.mark.parametrize("count", [1, 2])
def test_too_few_tokens_are_a_differentiable_zero(loss, count):
    student, teacher = sets(count=count)
    if loss is distance_loss and count == 2:  # one pair: its distance is its own mean
        assert loss(student, teacher).item() == pytest.approx(0.0, abs=1e-15)
    else:
        assert loss(student, teacher).item() == 0.0
    assert gradient(loss, student, teacher).abs().max() < 1e-15


@LOSSES
def test_half_precision_of_any_magnitude(loss):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        (torch.randint(0, 2, (2, 7, 24), generator=generator) * 2 - 1).to(torch.float16) * 6e4 for _ in range(2)
    )
    assert loss(student, teacher).item() == pytest.approx(SLOW[loss](student, teacher), rel=1e-4)
    assert gradient(loss, student, teacher).isfinite().all()
    assert loss(student, teacher).dtype == torch.float32


@LOSSES
@pytest.mark.parametrize("scale", [1e-36, 1e-30, 1e30, 1e35])
def test_float32_of_any_magnitude(loss, scale):
    student, teacher = (tokens.float() for tokens in sets())
    scaled = student * scale, teacher * scale
    torch.testing.assert_close(loss(*scaled), loss(student, teacher), rtol=1e-4, atol=0)
    slope = gradient(loss, student, teacher)
    torch.testing.assert_close(gradient(loss, *scaled).double() * scale, slope.double(), rtol=1e-3, atol=1e-6)


@pytest.mark.usefixtures("each_form")
@LOSSES
@pytest.mark.parametrize("which", [0, 1])
def test_not_a_number_shows(loss, which):
    pair = list(sets())
    pair[which][0, 2, 1] = torch.nan
    assert loss(*pair).isnan()


# Gradients, compiling.


@pytest.mark.usefixtures("each_form")
@LOSSES
def test_no_gradient_to_the_teacher(loss):
    student, teacher = (tokens.requires_grad_() for tokens in sets())
    loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.abs().max() > 0


@LOSSES
def test_without_gradient_the_value_is_the_same(loss):
    student, teacher = sets()
    with torch.no_grad():
        alone = loss(student.requires_grad_(), teacher)
    assert not alone.requires_grad
    assert alone.item() == loss(student, teacher).item()


def test_second_derivative_is_refused_rather_than_wrong():
    student, teacher = sets()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(angle_loss(student.requires_grad_(), teacher), student, create_graph=True)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param(
            "inductor",
            marks=pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler"),
        ),
    ],
)
@pytest.mark.usefixtures("traceable")
@pytest.mark.slow
def test_compiled_in_one_graph_value_and_gradient_are_the_same(backend):
    """The gradient too: `_unit_distances` tells what a compiled backward pass once got wrong, at this size."""
    torch._dynamo.reset()
    both = torch.compile(lambda s, t: sum(distance_and_angle(s, t).values()), backend=backend, fullgraph=True)
    student, teacher = sets(images=2, count=9, dtype=torch.float32)
    eager = distance_loss(student, teacher) + angle_loss(student, teacher)
    torch.testing.assert_close(both(student.clone().requires_grad_(), teacher).detach(), eager, rtol=1e-5, atol=0)
    expected = gradient(distance_loss, student, teacher) + gradient(angle_loss, student, teacher)
    torch.testing.assert_close(gradient(both, student, teacher), expected, rtol=1e-4, atol=1e-7)


# Memory.


def test_angle_loss_never_holds_all_triples():
    student, teacher = (distances(tokens) for tokens in sets(images=4, count=64, dtype=torch.float32))
    with LargestTensor() as watch:
        triples.walk_triples(student, teacher, True)
    assert watch.numbers < 4 * 64**3 / 4


MEASURE = """
import resource, sys, torch
from reldistill.relations.pairwise import angle_loss
def run(images, count):
    student = torch.randn(images, count, 64, requires_grad=True)
    angle_loss(student, torch.randn(images, count, 64)).backward()
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
run(2, 20)
before = peak()
run(8, 196)
print(peak() - before)
"""


@pytest.mark.slow
def test_peak_memory_is_well_below_all_triples():
    pytest.importorskip("resource", reason="the operating system does not tell peak memory")
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True, timeout=120)
    assert int(done.stdout) < 8 * 196**3 * 4 / 4


# Misuse.


@pytest.mark.usefixtures("unchecked_types")
@LOSSES
@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ((2, 4), (2, 4, 3), r"student: expected \(B, M, D\)"),
        ((2, 4, 3), (2, 5, 3), r"teacher: expected M = 4"),
        ((2, 4, 3), (3, 4, 3), r"B is 2 in the student and 3 in the teacher"),
    ],
)
def test_wrong_axes_are_named(loss, student, teacher, message):
    with pytest.raises(ValueError, match=message):
        loss(torch.zeros(student), torch.zeros(teacher))
