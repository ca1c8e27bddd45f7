from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given

from drawn import SEEDS, few, normal, order, same
from reldistill.losses.fgd import FGD

HEIGHT, WIDTH = 4, 6
# the second box of the first image lies in its first; the second image has one, the third none
BOXES = torch.tensor(
    [
        [[0.0, 0.0, 0.6, 0.75], [0.2, 0.3, 0.45, 0.5]],
        [[0.5, 0.5, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]],
        [[0.0, 0.0, 0.0, 0.0], [0.3, 0.3, 0.3, 0.9]],
    ],
    dtype=torch.float64,
)
PLAIN = ("foreground", "background", "attention")


def maps(seed=0):
    return normal((3, 4, HEIGHT, WIDTH), (3, 4, HEIGHT, WIDTH), seed=seed)


def made(**more):
    torch.manual_seed(0)
    loss = FGD(channels=4, **more).double()
    for relations in (loss.student_relations, loss.teacher_relations):
        torch.nn.init.normal_(relations.transform[-1].weight)
    return loss


def softmax(values: list[float]) -> list[float]:
    weights = [math.exp(value) for value in values]
    return [weight / math.fsum(weights) for weight in weights]


def attention(image, temperature):
    """Weight of every position (row by row) and of every channel."""
    positions = [
        sum(abs(image[c][y][x]) for c in range(4)) / 4 / temperature for y in range(HEIGHT) for x in range(WIDTH)
    ]
    channels = [sum(abs(v) for row in image[c] for v in row) / (HEIGHT * WIDTH) / temperature for c in range(4)]
    return [HEIGHT * WIDTH * w for w in softmax(positions)], [4 * w for w in softmax(channels)]


def covers(box, x, y):
    left, top, right, bottom = box
    touches = x + 1 > left * WIDTH and x < right * WIDTH and y + 1 > top * HEIGHT and y < bottom * HEIGHT
    return touches and right > left and bottom > top


def cells(box):
    return sum(covers(box, x, y) for y in range(HEIGHT) for x in range(WIDTH))


def slow(student, teacher, boxes, temperature):
    totals = dict.fromkeys(PLAIN, 0.0)
    for ours, theirs, own_boxes in zip(student.tolist(), teacher.tolist(), boxes.tolist(), strict=True):
        spatial, channel = attention(theirs, temperature)
        outside = sum(not any(covers(b, x, y) for b in own_boxes) for y in range(HEIGHT) for x in range(WIDTH))
        for y in range(HEIGHT):
            for x in range(WIDTH):
                error = spatial[y * WIDTH + x] * sum(
                    channel[c] * (theirs[c][y][x] - ours[c][y][x]) ** 2 for c in range(4)
                )
                sizes = [cells(box) for box in own_boxes if covers(box, x, y)]
                if sizes:
                    totals["foreground"] += error / min(sizes)
                else:
                    totals["background"] += error / outside
        own = attention(ours, temperature)
        for mine, wanted in zip(own, (spatial, channel), strict=True):
            totals["attention"] += sum(abs(a - b) for a, b in zip(mine, wanted, strict=True))
    return {name: total / len(student) for name, total in totals.items()}


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_matches_the_loop(temperature):
    student, teacher = maps()
    expected = slow(student, teacher, BOXES, temperature)
    parts = made(temperature=temperature).parts(student, teacher, boxes=BOXES, names=PLAIN)
    assert {name: part.item() for name, part in parts.items()} == pytest.approx(expected, rel=1e-9)


def related(maps, module):
    """A map after its global context, by loops over the positions."""
    results = []
    for image in maps:
        vectors = [image[:, y, x] for y in range(HEIGHT) for x in range(WIDTH)]
        keys = [(module.attend.weight.flatten() @ vector + module.attend.bias).item() for vector in vectors]
        context = sum(weight * vector for weight, vector in zip(softmax(keys), vectors, strict=True))
        hidden = module.transform[0].weight @ context + module.transform[0].bias
        deviation = hidden.var(unbiased=False).add(1e-5).sqrt()
        hidden = (hidden - hidden.mean()) / deviation * module.transform[1].weight + module.transform[1].bias
        added = module.transform[3].weight @ hidden.clamp(min=0) + module.transform[3].bias
        results.append(image + added[:, None, None])
    return torch.stack(results)


def test_relations_match_the_loop():
    student, teacher = maps()
    loss = made()
    expected = (related(teacher, loss.teacher_relations) - related(student, loss.student_relations)).square().sum() / 3
    same(loss.parts(student, teacher, boxes=BOXES, names=["global"])["global"], expected)


def test_relations_begin_as_the_identity():
    student, teacher = maps()
    expected = (teacher - student).square().sum() / 3
    fresh = FGD(channels=4).double()
    same(fresh.parts(student, teacher, boxes=BOXES)["global"], expected)


def test_the_value_is_the_weighted_sum():
    student, teacher = maps()
    loss = made(foreground_weight=2.0, background_weight=0.0, attention_weight=0.5, global_weight=0.1)
    parts = loss.parts(student, teacher, boxes=BOXES)
    expected = 2 * parts["foreground"] + 0.5 * parts["attention"] + 0.1 * parts["global"]
    same(loss(student, teacher, boxes=BOXES), expected)


@given(seed=SEEDS)
@few
def test_order_of_the_samples_and_of_an_image_s_boxes(seed):
    student, teacher = maps(seed)
    loss, samples = made(), order(3, seed)
    before = loss(student, teacher, boxes=BOXES)
    same(loss(student[samples], teacher[samples], boxes=BOXES[samples][:, order(2, seed)]), before)


@given(seed=SEEDS)
@few
def test_common_permutation_of_the_channels(seed):
    student, teacher = maps(seed)
    loss, channels = made(), order(4, seed)
    before = loss.parts(student, teacher, boxes=BOXES, names=PLAIN)
    for name, part in loss.parts(student[:, channels], teacher[:, channels], boxes=BOXES, names=PLAIN).items():
        same(part, before[name])


def test_objects_everywhere_and_nowhere():
    student, teacher = maps()
    everywhere = torch.tensor([[[0.0, 0.0, 1.0, 1.0]]] * 3, dtype=torch.float64)
    loss = made()
    whole = loss.parts(student, teacher, boxes=everywhere)
    none = loss.parts(student, teacher, boxes=everywhere[:, :0])
    assert whole["background"].item() == none["foreground"].item() == 0
    same(whole["foreground"], none["background"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 1}, "channels must be at least 2"),
        ({"channels": 4, "temperature": 0}, "temperature must be above 0"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        FGD(**settings)


@pytest.mark.usefixtures("unchecked_types")
def test_wrong_axes_are_named():
    with pytest.raises(ValueError, match="student: expected C = 4"):
        made()(torch.zeros(3, 3, 2, 2), torch.zeros(3, 4, 2, 2), boxes=BOXES)
    with pytest.raises(ValueError, match="boxes: expected B = 3"):
        made()(*maps(), boxes=BOXES[:2])


def test_a_box_covers_every_cell_that_it_touches():
    """Edges that rounding to the nearest cell would move inwards: columns 1 to 3 of 6, rows 1 to 3 of 4."""
    boxes = torch.tensor([[[1.7 / WIDTH, 1.6 / HEIGHT, 3.2 / WIDTH, 3.3 / HEIGHT]]], dtype=torch.float64)
    touched = torch.zeros(HEIGHT, WIDTH, dtype=torch.float64)
    touched[1:4, 1:4] = 1
    loss, student = made(), torch.zeros(1, 4, HEIGHT, WIDTH, dtype=torch.float64, requires_grad=True)
    parts = loss.parts(student, torch.ones_like(student), boxes=boxes)
    (inside,) = torch.autograd.grad(parts["foreground"], student, retain_graph=True)
    (outside,) = torch.autograd.grad(parts["background"], student)
    assert torch.equal(inside[0].ne(0).all(dim=0).double(), touched)
    assert torch.equal(outside[0].ne(0).all(dim=0).double(), 1 - touched)
    same(inside[0, :, 1:4, 1:4], torch.full((4, 3, 3), -2 / 9, dtype=torch.float64))
    same(outside[0, :, 0], torch.full((4, 6), -2 / 15, dtype=torch.float64))
