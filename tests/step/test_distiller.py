from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from ddp_helpers import run_on_ranks
from reldistill.core.checks import UserError
from reldistill.core.types import Batch, ClassLabels, Features, Targets, Wanted
from reldistill.losses import KD, RKD, FitNets
from reldistill.methods.build import build_distiller
from reldistill.methods.plan import Choices
from reldistill.networks.adapters import MapAdapter
from reldistill.networks.extract import Extractor
from reldistill.step.curriculum import WarmUp
from reldistill.step.distiller import Distiller
from reldistill.step.term import Term
from reldistill.tasks.classification.objective import Classification

CLASSES = 4
SIDE = 16


def cnn(width: int, *, norm: bool = True, seed: int = 0) -> nn.Module:
    """Two stages, `early` at half and `late` at a quarter of the resolution."""
    torch.manual_seed(seed)

    def stage(ins: int, outs: int) -> nn.Module:
        layers = [nn.Conv2d(ins, outs, 3, stride=2, padding=1), nn.BatchNorm2d(outs) if norm else nn.Identity()]
        return nn.Sequential(*layers, nn.Tanh())

    network = nn.Sequential()
    network.add_module("early", stage(3, width))
    network.add_module("late", stage(width, 2 * width))
    network.add_module("pool", nn.AdaptiveAvgPool2d(1))
    network.add_module("flat", nn.Flatten())
    network.add_module("head", nn.Linear(2 * width, CLASSES))
    return network


def batch(count: int = 6, *, dtype: torch.dtype = torch.float32) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 3, SIDE, SIDE, generator=generator)
    return Batch(images.to(dtype), ClassLabels(torch.randint(CLASSES, (count,), generator=generator)))


class Spy(Extractor):
    """An Extractor that writes down what it was asked for."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.asked: list[Wanted] = []
        self.modes: list[tuple[bool, bool]] = []  # of each time: with gradients? anything in training mode?

    def ask(self, images: Tensor, wanted: Wanted, *, targets: Targets | None = None) -> Features:
        self.asked.append(wanted)
        self.modes.append((torch.is_grad_enabled(), any(m.training for m in self.modules())))
        return super().ask(images, wanted, targets=targets)


def kd(weight: float = 2.0, **more: Any) -> Term:
    return Term("kd", KD(temperature=3.0), student="logits", teacher="logits", weights=weight, **more)


def fitnets(weight: float = 0.5, *, name: str = "fitnets", level: str = "late", **more: Any) -> Term:
    return Term(name, FitNets(), student=level, teacher=level, weights=weight, **{"adapter": "late", **more})


def rkd(**more: Any) -> Term:
    weights = {"distance": 25.0, "angle": 50.0}
    return Term("rkd", RKD(), student="pooled", teacher="pooled", weights=weights, **more)


def distiller(*terms: Term, **more: Any) -> Distiller:
    return Distiller(
        Spy(cnn(4)),
        {"teacher": Spy(cnn(8, seed=1))},
        terms=terms,
        adapters={"late": MapAdapter(8, 16, teacher_size=(4, 4))} if any(t.adapter for t in terms) else {},
        task=Classification(),
        **more,
    )


# The total -----------------------------------------------------------------------------------------------------------


def test_total_is_the_sum_of_parts_and_of_a_sum_written_by_hand() -> None:
    module = distiller(kd(), fitnets(), rkd(), task_weight=0.7)
    student, teacher = module.student.network, module.teachers["teacher"].network
    seen = copy.deepcopy(student)
    step = module(batch())
    ours = seen.late(seen.early(batch().images))
    logits = seen.head(ours.mean(dim=(2, 3)))
    with torch.no_grad():
        theirs = teacher.late(teacher.early(batch().images))
        goal = teacher.head(theirs.mean(dim=(2, 3)))
    soft = functional.softmax(goal / 3, dim=1)
    expected = {
        "task": 0.7 * functional.cross_entropy(logits, batch().targets.labels),
        "kd": 2 * 9 * (soft * (soft.log() - functional.log_softmax(logits / 3, dim=1))).sum(dim=1).mean(),
        "fitnets": 0.5 * (module.adapters["late"].project(ours) - theirs).square().mean(),
    }
    relations = RKD().parts(ours.mean(dim=(2, 3)), theirs.mean(dim=(2, 3)))
    expected |= {"rkd.distance": 25 * relations["distance"], "rkd.angle": 50 * relations["angle"]}
    assert list(step.parts) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(step.parts[name], value.detach(), msg=name)
        assert not step.parts[name].requires_grad
    torch.testing.assert_close(step.total, sum(step.parts.values()))
    torch.testing.assert_close(step.student.logits, logits)
    assert step.total.requires_grad
    assert step.total.shape == ()


def test_terms_of_one_name_are_added() -> None:
    both = distiller(fitnets(0.5), fitnets(0.25, name="fitnets"))
    one = distiller(fitnets(0.75))
    both.adapters["late"].load_state_dict(one.adapters["late"].state_dict())
    assert list(both(batch()).parts) == ["task", "fitnets"]
    torch.testing.assert_close(both(batch()).parts["fitnets"], one(batch()).parts["fitnets"])


def test_a_pair_of_images_and_labels_is_a_batch() -> None:
    module = distiller(kd()).eval()
    whole = module(batch())
    for pair in ((batch().images, batch().targets.labels), [batch().images, batch().targets.labels]):
        assert torch.equal(module(pair).total, whole.total)


def test_float64_all_the_way() -> None:
    module = distiller(kd(), fitnets(), rkd()).double().eval()
    single = copy.deepcopy(module).float()
    step = module(batch(dtype=torch.float64))
    assert step.total.dtype == torch.float64
    assert {name: value.dtype for name, value in step.parts.items()} == dict.fromkeys(step.parts, torch.float64)
    for name, value in single(batch()).parts.items():
        torch.testing.assert_close(value, step.parts[name].float(), msg=name)
    step.total.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float64 for p in module.trainable_parameters())


def test_autocast_leaves_the_losses_in_float32() -> None:
    module = distiller(kd(), fitnets(), rkd()).eval()
    plain = module(batch())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        step = module(batch())
    assert step.student.logits.dtype == torch.bfloat16
    assert step.total.dtype == torch.float32
    torch.testing.assert_close(step.total, plain.total, rtol=0.05, atol=0.05)


# The teacher ---------------------------------------------------------------------------------------------------------


def test_the_teacher_stays_as_it_was_whatever_is_called() -> None:
    module = distiller(kd(), fitnets(), rkd())
    outer, teacher = nn.ModuleList([module]), module.teachers["teacher"]
    before = copy.deepcopy(teacher.state_dict())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        module.train()
        outer.train()
        module.requires_grad_(True)
        assert module.student.training
        assert not any(m.training for m in teacher.modules())
        optimizer.zero_grad()
        module(batch()).total.backward()
        assert all(p.grad is None for p in teacher.parameters())
        optimizer.step()
    after = teacher.state_dict()
    assert any(name.endswith("running_mean") for name in after)
    for name, value in before.items():
        assert torch.equal(after[name], value), name
    assert teacher.modes == [(False, False)] * 3


def test_the_student_learns() -> None:
    module = distiller(kd(), fitnets(), rkd())
    before = copy.deepcopy(module.student.state_dict())
    module(batch()).total.backward()
    torch.optim.SGD(module.trainable_parameters(), lr=0.1).step()
    changed = {n for n, v in module.student.state_dict().items() if not torch.equal(v, before[n])}
    assert changed == set(before)


def test_a_new_teacher_is_frozen_and_in_eval_mode() -> None:
    module = distiller(kd())
    assert module.training
    teacher = module.teachers["teacher"]
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not teacher.training
    assert not module.eval().student.training
    module.train()
    assert not teacher.training
    ids = {id(p) for p in module.trainable_parameters()}
    assert ids == {id(p) for p in module.student.parameters()}


def test_trainable_parameters_are_those_of_student_adapters_and_losses() -> None:
    module = distiller(fitnets(), Term("own", nn.Bilinear(8, 16, 1), student="pooled", teacher="pooled", weights=1.0))
    expected = [*module.student.parameters(), *module.terms.parameters(), *module.adapters.parameters()]
    assert {id(p) for p in module.trainable_parameters()} == {id(p) for p in expected}
    assert len(module.trainable_parameters()) == len(expected) == 10 + 2 + 1


def test_a_teacher_that_was_told_to_train_is_asked_in_eval_mode_still() -> None:
    module = distiller(kd(), fitnets(), rkd()).eval()
    teacher = module.teachers["teacher"]
    expected, before = module(batch()), copy.deepcopy(teacher.state_dict())
    module.teachers["teacher"].train()
    assert torch.equal(module(batch()).total, expected.total)
    for part in module.teachers["teacher"].modules():
        part.train()
    assert torch.equal(module(batch()).total, expected.total)
    teacher.network.early.train()  # its batch norm alone
    teacher.requires_grad_(True)
    again = module(batch())
    assert torch.equal(again.total, expected.total)
    again.total.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert not {id(p) for p in module.trainable_parameters()} & {id(p) for p in teacher.parameters()}
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert teacher.modes == [(False, False)] * 4


def test_a_student_that_shares_with_its_teacher_is_refused() -> None:
    teacher = cnn(4)
    student = cnn(4, seed=1)
    student.late = teacher.late
    with pytest.raises(UserError, match=r"^the student shares 'network.late' with its teacher 'teacher', which must"):
        Distiller(Extractor(student), {"teacher": Extractor(teacher)}, terms=[], adapters={}, task=Classification())
    student = cnn(4, seed=1)
    student.head.weight = teacher.head.weight
    teachers = {"other": Extractor(cnn(8)), "big": Extractor(teacher)}
    with pytest.raises(UserError, match=r"the student shares 'network.head.weight' with its teacher 'big'"):
        Distiller(Extractor(student), teachers, terms=[], adapters={}, task=Classification())
    both = Extractor(teacher)
    with pytest.raises(UserError, match="the student shares the whole network with its teacher 'teacher'"):
        Distiller(both, {"teacher": both}, terms=[], adapters={}, task=Classification())


# Several teachers ----------------------------------------------------------------------------------------------------


def two_teachers(*, small: int = 12, **more: Any) -> Distiller:
    """`large` sees the images as they are, `small` resized and normalised."""
    return Distiller(
        Spy(cnn(4)),
        {"large": Spy(cnn(8, seed=1)), "small": Normalising(cnn(6, seed=2), side=small)},
        terms=[
            kd(teacher_name="large"),
            kd(weight=0.5, teacher_name="small"),
            rkd(teacher_name="small"),
            fitnets(adapter=None, level="early", teacher_name="large", curriculum=WarmUp(over=0.5)),
        ],
        adapters={},
        task=Classification(),
        **more,
    )


class Normalising(Spy):
    """With a size and a normalisation of its own."""

    def __init__(self, network: nn.Module, *, side: int) -> None:
        super().__init__(network)
        self.input_size = side
        self.mean, self.std = torch.full((3, 1, 1), 0.4), torch.full((3, 1, 1), 0.3)


def test_every_teacher_is_asked_for_what_its_own_terms_need_in_its_own_way() -> None:
    module = two_teachers()
    module.student.network.early[0] = nn.Conv2d(3, 8, 3, stride=2, padding=1)
    module.student.network.early[1] = nn.BatchNorm2d(8)
    module.student.network.late[0] = nn.Conv2d(8, 8, 3, stride=2, padding=1)
    module = module.eval()
    step = module(batch())
    parts = ["task", "large.kd", "small.kd", "small.rkd.distance", "small.rkd.angle", "large.fitnets"]
    assert list(step.parts) == parts
    large, small = module.teachers["large"], module.teachers["small"]
    assert large.asked == [Wanted(("early",), logits=True)]
    assert small.asked == [Wanted(logits=True, pooled=True)]
    resized = functional.interpolate(batch().images, (12, 12), mode="bilinear", antialias=True)
    logits = {"large": large.network(batch().images), "small": small.network((resized - 0.4) / 0.3)}
    ours = step.student.logits
    for name, weight in (("large", 2.0), ("small", 0.5)):
        expected = weight * KD(temperature=3.0)(ours, logits[name])
        torch.testing.assert_close(step.parts[f"{name}.kd"], expected.detach())
    torch.testing.assert_close(step.total.detach(), sum(step.parts.values()))
    module(batch(), progress=0.0)
    assert large.asked[-1] == Wanted(logits=True)
    assert [name for term in module.terms for name in term.named_weights] == [*parts[1:]]


def test_a_teacher_without_active_terms_is_not_asked() -> None:
    module = two_teachers()
    for term in module.terms:
        if term.teacher_name == "small":
            term.weights = dict.fromkeys(term.weights, 0.0)
    module(batch(), progress=0.0)
    assert module.teachers["small"].asked == []
    assert len(module.teachers["large"].asked) == 1


def test_two_of_the_same_teacher_are_two_terms_of_one() -> None:
    network = cnn(8, seed=1)
    twice = {"a": Extractor(network), "b": Extractor(copy.deepcopy(network))}
    terms = [kd(teacher_name="a"), kd(teacher_name="b")]
    both = Distiller(Extractor(cnn(4)), twice, terms=terms, adapters={}, task=Classification())
    one = Distiller(
        Extractor(cnn(4)), {"a": twice["a"]}, terms=[kd(4.0, teacher_name="a")], adapters={}, task=Classification()
    )
    parts = both(batch()).parts
    assert torch.equal(parts["a.kd"], parts["b.kd"])
    torch.testing.assert_close(parts["a.kd"] + parts["b.kd"], one(batch()).parts["kd"])


def test_what_a_batch_brings_of_a_teacher_is_not_asked_for() -> None:
    module = two_teachers().eval()
    for term in module.terms:
        if term.name == "fitnets":
            term.weights = {"": 0.0}
    live = module(batch())
    large, small = module.teachers["large"], module.teachers["small"]
    said = {"small": module.ask_teacher(batch().images, name="small")}
    assert list(said["small"]) == ["logits", "pooled"]
    for teacher in (large, small):
        teacher.asked.clear()
    stored = module(Batch(batch().images, batch().targets, teachers=said).to("cpu"))
    assert small.asked == []
    assert len(large.asked) == 1
    assert {n: float(v) for n, v in live.parts.items()} == {n: float(v) for n, v in stored.parts.items()}


def test_one_teacher_s_state_has_the_names_that_it_always_had() -> None:
    """A state that was saved when there could be but one teacher still loads."""
    module = distiller(fitnets(), rkd())
    network = [name for name, _ in cnn(4).state_dict().items()]
    expected = [f"{one}.network.{name}" for one in ("student", "teacher") for name in network]
    assert list(module.state_dict()) == [*expected, "adapters.late.project.weight"]
    renamed = Distiller(
        Spy(cnn(4)), {"large": Spy(cnn(8))}, terms=[kd(teacher_name="large")], adapters={}, task=Classification()
    )
    assert list(renamed.state_dict()) == expected
    assert list(renamed(batch()).parts) == ["task", "kd"]
    several = two_teachers().state_dict()
    assert {name.split(".")[0] for name in several} == {"student", "teacher_large", "teacher_small"}


# What is asked and run -----------------------------------------------------------------------------------------------


def test_only_what_active_terms_need_is_asked_for() -> None:
    module = distiller(kd(), fitnets(), fitnets(0.0, level="early", adapter=None))
    module(batch())
    assert module.student.asked == [Wanted(("late",), logits=True)]
    assert module.teachers["teacher"].asked == [Wanted(("late",), logits=True)]
    deep = distiller(fitnets())
    deep(batch())
    assert deep.teachers["teacher"].asked == [Wanted(("late",), logits=False)]
    assert deep.student.asked[0].logits
    wide = distiller(rkd())
    wide(batch())
    assert wide.teachers["teacher"].asked == [Wanted(logits=False, pooled=True)]
    assert wide.student.asked == [Wanted(logits=True, pooled=True)]


def test_the_teacher_stops_at_the_deepest_level_asked() -> None:
    module = distiller(fitnets(level="early", adapter=None), kd(0.0))
    module.student.network.early[0] = nn.Conv2d(3, 8, 3, stride=2, padding=1)
    module.student.network.early[1] = nn.Identity()
    module.student.network.late[0] = nn.Conv2d(8, 8, 3, stride=2, padding=1)
    ran: list[str] = []
    teacher = module.teachers["teacher"]
    teacher.survey(SIDE)
    for name, part in teacher.network.named_children():
        part.register_forward_pre_hook(lambda _m, _i, name=name: ran.append(name))
    module(batch())
    assert ran == ["early"]


def test_a_term_of_no_weight_is_skipped_and_an_idle_teacher_not_asked() -> None:
    module = distiller(kd(0.0))
    step = module(batch())
    assert list(step.parts) == ["task"]
    assert module.teachers["teacher"].asked == []
    assert len(module.student.asked) == 1


def test_a_task_of_no_weight_is_skipped() -> None:
    step = distiller(kd(), task_weight=0.0)(batch())
    assert list(step.parts) == ["kd"]


def test_nothing_to_minimise_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to minimise"):
        distiller(kd(0.0), task_weight=0.0)(batch())


def test_an_adapter_shared_by_two_terms_runs_once() -> None:
    module = distiller(fitnets(), fitnets(0.25, name="again"))
    runs: list[Tensor] = []
    module.adapters["late"].register_forward_hook(lambda _m, _i, output: runs.append(output))
    step = module(batch())
    assert len(runs) == 1
    torch.testing.assert_close(step.parts["fitnets"], 2 * step.parts["again"])


class Spread(nn.Module):
    """The mean of the student's tensor, in the shape of the teacher's."""

    wants_teacher = True

    def forward(self, student: Tensor, *, teacher: Tensor) -> Tensor:
        return student.mean().expand_as(teacher)


@pytest.mark.parametrize(
    ("adapter", "places"),
    [(nn.Identity(), [("early", "early"), ("late", "late")]), (Spread(), [("late", "early"), ("late", "late")])],
)
def test_a_shared_adapter_gives_every_place_its_own(adapter: nn.Module, places: list[tuple[str, str]]) -> None:
    networks = Extractor(cnn(4)), Extractor(cnn(4, seed=1))
    terms = [
        Term(teacher, FitNets(), student=student, teacher=teacher, weights=1.0, adapter="shared")
        for student, teacher in places
    ]
    module = Distiller(
        networks[0], {"teacher": networks[1]}, terms=terms, adapters={"shared": adapter}, task=Classification()
    ).eval()
    found = module(batch()).parts
    levels = [network(batch().images, levels=("early", "late")).levels for network in networks]
    for student, teacher in places:
        ours, theirs = levels[0][student], levels[1][teacher]
        adapted = ours if isinstance(adapter, nn.Identity) else adapter(ours, teacher=theirs)
        torch.testing.assert_close(found[teacher], (adapted - theirs).square().mean().detach())


def test_adapters_of_similar_names_are_kept_apart() -> None:
    adapters = {"layer.1": nn.Conv2d(1, 1, 1), "layer_1": nn.Conv2d(1, 1, 1)}
    module = Distiller(Extractor(cnn(4)), {}, terms=[], adapters=adapters, task=Classification())
    assert {id(a) for a in module.adapters.values()} == {id(a) for a in adapters.values()}


def test_a_curriculum_moves_a_terms_weight_and_starts_without_its_teacher() -> None:
    module = distiller(fitnets(curriculum=WarmUp(over=0.5))).eval()
    full = module(batch()).parts["fitnets"]
    torch.testing.assert_close(module(batch(), progress=0.25).parts["fitnets"], full / 2)
    module.teachers["teacher"].asked.clear()
    assert list(module(batch(), progress=0.0).parts) == ["task"]
    assert module.teachers["teacher"].asked == []


def test_every_trainable_parameter_has_a_gradient_even_of_idle_parts() -> None:
    terms = (fitnets(curriculum=WarmUp(over=0.5)), rkd())
    module = distiller(*terms, task_weight=0.0)
    module(batch(), progress=0.0).total.backward()
    head = module.student.network.head
    for parameter in (*module.adapters.parameters(), *head.parameters()):
        assert parameter.grad is not None
        assert not parameter.grad.any()
    assert all(p.grad is not None for p in module.trainable_parameters())
    with torch.no_grad():
        assert torch.isfinite(module(batch(), progress=0.0).total)


def test_normalisation_and_size_of_each_network() -> None:
    ours, theirs = cnn(4).eval(), cnn(8, seed=1).eval()
    module = Distiller(
        Extractor(ours, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2), input_size=12),
        {"teacher": Extractor(theirs, mean=(0.1, 0.2, 0.3), std=(0.3, 0.4, 0.5), input_size=24)},
        terms=[kd(), fitnets()],
        adapters={"late": MapAdapter(8, 16, teacher_size=(6, 6))},
        task=Classification(),
    ).eval()
    step = module(batch())

    def prepared(side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
        images = functional.interpolate(batch().images, (side, side), mode="bilinear", antialias=True)
        return (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]

    small = prepared(12, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    large = prepared(24, (0.1, 0.2, 0.3), (0.3, 0.4, 0.5))
    expected = 2 * KD(temperature=3.0)(ours(small), theirs(large))
    torch.testing.assert_close(step.parts["kd"], expected.detach())
    ours_late, theirs_late = ours.late(ours.early(small)), theirs.late(theirs.early(large))
    assert ours_late.shape[2:] == (3, 3)
    assert theirs_late.shape[2:] == (6, 6)
    adapted = module.adapters["late"](ours_late)
    torch.testing.assert_close(step.parts["fitnets"], 0.5 * (adapted - theirs_late).square().mean().detach())


def test_misuse_is_refused_when_it_is_built() -> None:
    student = Extractor(cnn(4))
    with pytest.raises(ValueError, match="term 'kd' needs a teacher"):
        Distiller(student, {}, terms=[kd()], adapters={}, task=Classification())
    with pytest.raises(ValueError, match="term 'fitnets' names adapter 'late', which is not among"):
        Distiller(student, {"teacher": Extractor(cnn(8))}, terms=[fitnets()], adapters={}, task=Classification())
    teachers = {"large": Extractor(cnn(8)), "wide": Extractor(cnn(9))}
    with pytest.raises(ValueError, match="term 'kd' looks at teacher 'teacher', which is not among large, wide"):
        Distiller(student, teachers, terms=[kd()], adapters={}, task=Classification())


# What is kept of it --------------------------------------------------------------------------------------------------


def test_export_is_the_plain_student() -> None:
    network = cnn(4)
    module = build_distiller("serkd", student=network, teacher=cnn(8), image_size=SIDE, task=Classification())
    module(batch()).total.backward()
    exported = module.export()
    assert type(exported) is type(network)
    assert list(exported.state_dict()) == list(network.state_dict())
    assert not exported.training
    assert module.student.training
    assert all(not m._forward_hooks for m in exported.modules())
    module.eval()
    assert torch.equal(exported(batch().images), module(batch()).student.logits)
    with torch.no_grad():
        exported.head.weight.zero_()
    assert network.head.weight.any()


def test_state_round_trip() -> None:
    def make(seed: int) -> Distiller:
        torch.manual_seed(seed)
        student, teacher = cnn(4, seed=seed), cnn(8, seed=seed + 1)
        return build_distiller("serkd+sekd", student=student, teacher=teacher, image_size=SIDE, task=Classification())

    one, other = make(0), make(7)
    for _ in range(2):  # move the student's batch norm statistics
        one(batch())
    other.load_state_dict(one.state_dict())
    first, second = one.eval()(batch()), other.eval()(batch())
    assert torch.equal(first.total, second.total)
    assert {n: float(v) for n, v in first.parts.items()} == {n: float(v) for n, v in second.parts.items()}


# Two processes -------------------------------------------------------------------------------------------------------

METHODS = ("rkd", "sekd", "serkd", "fitnets")


def _step(method: str, module: Distiller | DistributedDataParallel, images: Batch, progress: float) -> dict[str, Any]:
    step = module(images, progress=progress)
    step.total.backward()
    inner = module.module if isinstance(module, DistributedDataParallel) else module
    gradients = {name: p.grad for name, p in inner.named_parameters() if p.requires_grad}
    return {"total": step.total.detach(), "parts": dict(step.parts), "gradients": gradients}


def _make(method: str) -> Distiller:
    torch.manual_seed(3)
    return build_distiller(
        method,
        student=cnn(4, norm=False),
        teacher=cnn(6, norm=False, seed=1),
        image_size=SIDE,
        task=Classification(),
        choices=Choices(weights={"task": 0.0} if method == "fitnets" else {}, curriculum=WarmUp(over=0.5)),
    ).double()


def _part(whole: Batch, mine: slice) -> Batch:
    return Batch(whole.images[mine], ClassLabels(whole.targets.labels[mine]))


def share_of_a_step(rank: int, world_size: int) -> dict[str, Any]:
    whole = batch(8, dtype=torch.float64)
    mine = slice(rank * 8 // world_size, (rank + 1) * 8 // world_size)
    results = {}
    for method in METHODS:
        module = DistributedDataParallel(_make(method))
        if method != "fitnets":
            # At first nothing but the task and the logits counts: DDP must not wait for the adapters.
            module(_part(whole, mine), progress=0.0).total.backward()
            module.zero_grad()
        results[method] = _step(method, module, _part(whole, mine), 1.0)
    return results


@pytest.mark.slow
def test_two_processes_give_the_values_and_gradients_of_one() -> None:
    ranks = run_on_ranks(share_of_a_step)
    for method in METHODS:
        whole = _step(method, _make(method), batch(8, dtype=torch.float64), 1.0)
        shares = [rank[method] for rank in ranks]
        torch.testing.assert_close((shares[0]["total"] + shares[1]["total"]) / 2, whole["total"], msg=method)
        assert list(shares[0]["parts"]) == list(whole["parts"])
        for name, value in whole["parts"].items():
            mean = (shares[0]["parts"][name] + shares[1]["parts"][name]) / 2
            torch.testing.assert_close(mean, value, msg=f"{method} {name}")
        assert any(value.any() for value in whole["gradients"].values())
        for name, value in whole["gradients"].items():
            for share in shares:
                torch.testing.assert_close(
                    share["gradients"][name], value, rtol=1e-8, atol=1e-10, msg=f"{method} {name}"
                )
