from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

import reldistill.networks.cifar  # noqa: F401 - registers the networks
from reldistill.core.checks import UserError
from reldistill.networks.extract import Extractor
from reldistill.networks.reused_head import ReusedHead, averaged_level, reuse_head

SIDE = 32


def network(name: str, **arguments: object) -> Extractor:
    torch.manual_seed(0)
    return Extractor(timm.create_model(name, num_classes=5, **arguments), name=name)


def transformer(**more: object) -> Extractor:
    settings = {"img_size": SIDE, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    return network("vit_tiny_patch16_224", **{**settings, **more})


def images(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def test_the_level_whose_mean_the_classifier_sees() -> None:
    resnet, transformed = network("resnet8"), transformer(global_pool="avg", class_token=False, fc_norm=False)
    level = averaged_level(resnet, SIDE)
    assert level is not None
    assert (level.name.split(".")[0], level.channels, level.height) == ("layer3", 64, 8)
    level = averaged_level(network("wrn_16_1"), SIDE)
    assert level is not None
    assert level.name == "relu"
    assert averaged_level(transformer(), SIDE) is None
    level = averaged_level(transformed, SIDE)
    assert level is not None
    assert (level.kind, level.height) == ("tokens", 4)
    assert (resnet.pooled_is_rectified, transformed.pooled_is_rectified) == (True, False)


@pytest.mark.parametrize("student", ["resnet8", "wrn_16_1", "mobilenetv2_half", "vit"])
@pytest.mark.parametrize("teacher", ["resnet8x4", "vit"])
def test_the_teachers_classifier_stays_as_it_is(student: str, teacher: str) -> None:
    ours = transformer(embed_dim=16) if student == "vit" else network(student)
    theirs = transformer() if teacher == "vit" else network(teacher)
    made = reuse_head(ours, theirs, SIDE)
    reused = made.network
    assert isinstance(reused, ReusedHead)
    said = theirs.eval()(images(), pooled=True)
    torch.testing.assert_close(reused.head(said.pooled), said.logits, rtol=1e-4, atol=1e-5)
    before = reused.head.weight.clone()
    trained = [p for p in made.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=0.1)
    made.train()(images()).logits.sum().backward()
    assert all(p.grad is not None for p in trained)
    optimiser.step()
    assert torch.equal(reused.head.weight, before)
    assert made.survey(SIDE)
    assert made.num_classes == 5


def test_is_built_again_from_its_description() -> None:
    made = reuse_head(network("resnet8"), network("resnet8x4"), SIDE)
    reused = made.network
    assert isinstance(reused, ReusedHead)
    bare = network("resnet8").network
    again = ReusedHead(bare, image_size=SIDE, num_classes=5, **reused.described())
    again.load_state_dict(reused.state_dict())
    assert torch.equal(again.eval()(images()), reused.eval()(images()))
    assert reused.described() == again.described()


def test_the_students_own_classifier_is_gone() -> None:
    reused = reuse_head(network("resnet8"), network("resnet8x4"), SIDE).network
    assert not any(name.startswith("backbone.network.fc") for name in reused.state_dict())


def test_a_larger_map_is_averaged_to_the_teachers() -> None:
    student = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    student.append(nn.Linear(6, 5))
    made = reuse_head(Extractor(student, name="flat"), network("resnet8x4"), SIDE)
    assert made.survey(SIDE)
    said = made(images(), levels=("projector",))
    assert said.levels["projector"].shape == (3, 256, 8, 8)


def test_two_heads_cannot_be_reused() -> None:
    small = {"img_size": SIDE, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    teacher = network("deit_tiny_distilled_patch16_224", **small)
    with pytest.raises(UserError, match="no one linear layer makes the logits of deit_tiny_distilled_patch16_224"):
        reuse_head(network("resnet8"), teacher, SIDE)


def test_a_reused_classifier_is_not_replaced_again() -> None:
    made = reuse_head(network("resnet8"), network("resnet8x4"), SIDE)
    with pytest.raises(UserError, match="resnet8 has another network's classifier already"):
        reuse_head(made, network("resnet8x4"), SIDE)
