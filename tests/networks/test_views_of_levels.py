"""Patch tokens through the network's final norm, and class tokens, by the end of a level's name."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torchvision
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from reldistill.core.checks import UserError
from reldistill.core.types import holds_map
from reldistill.networks.extract import Extractor

IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def vit(**arguments: Any) -> VisionTransformer:
    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 5}
    made = VisionTransformer(**{**sizes, **arguments}).eval()
    if isinstance(made.norm, nn.LayerNorm):  # that of a fresh network is next to nothing
        nn.init.uniform_(made.norm.weight, 0.5, 2.0)
        nn.init.normal_(made.norm.bias)
    return made


@pytest.mark.parametrize("arguments", [{}, {"reg_tokens": 4}, {"num_classes": 0}], ids=str)
@torch.no_grad()
def test_views_are_those_of_timm(arguments: dict[str, Any]) -> None:
    network = vit(**arguments)
    names = ("blocks.1", "blocks.1@norm", "blocks.1@class", "blocks.2@norm@class")
    found = Extractor(network)(IMAGES, levels=names, logits=False).levels
    assert list(found) == list(names)
    for norm, patches, token, block in ((False, names[0], names[2], 1), (True, names[1], names[3], 2)):
        raw = network.forward_intermediates(
            IMAGES, indices=[1, block], norm=norm, return_prefix_tokens=True, intermediates_only=True
        )
        torch.testing.assert_close(found[patches], raw[0][0])
        if not norm:
            raw = [raw[0], raw[0]]
        torch.testing.assert_close(found[token], raw[1][1][:, 0, :, None, None])
    assert not torch.allclose(found[names[0]], found[names[1]])


def test_what_a_survey_says_of_views() -> None:
    extractor = Extractor(vit(), name="small")
    plain, normed, token = (extractor.level(f"blocks.1{view}", 16) for view in ("", "@norm", "@norm@class"))
    assert (normed.name, normed.channels, normed.height) == ("blocks.1@norm", plain.channels, plain.height)
    assert (token.name, token.channels, token.height, token.width) == ("blocks.1@norm@class", plain.channels, 1, 1)
    assert "@" not in "".join(level.name for level in extractor.survey(16))
    assert [holds_map(name) for name in ("blocks.1@norm", "blocks.1@class", "pooled")] == [True, False, False]
    for odd in ("blocks.1@class@norm", "blocks.1@middle", "blocks.9@norm", "blocks.1@"):
        with pytest.raises(UserError, match=rf"^level '{odd}' not in small: it has blocks.0, "):
            extractor.level(odd, 16)


def test_the_last_norms_parameters_learn_and_its_hooks_are_left_alone() -> None:
    network = vit()
    calls: list[int] = []
    network.norm.register_forward_hook(lambda *_: calls.append(1))
    extractor = Extractor(network)
    extractor.survey(16)
    calls.clear()
    said = extractor(IMAGES, levels=("blocks.1@norm",), pooled=True)
    assert len(calls) == 1
    said.levels["blocks.1@norm"].square().sum().backward()
    assert network.norm.weight.grad.any()
    assert network.blocks[2].mlp.fc1.weight.grad is None
    assert Extractor(copy.deepcopy(network))(IMAGES, levels=("blocks.0@norm",), logits=False).levels


def test_the_pass_stops_at_the_block() -> None:
    network = vit()
    extractor = Extractor(network)
    extractor.survey(16)
    ran: list[int] = []
    network.blocks[2].register_forward_hook(lambda *_: ran.append(2))
    extractor(IMAGES, levels=("blocks.1@norm", "blocks.1@norm@class"), logits=False)
    assert not ran


@torch.no_grad()
def test_torchvisions_transformer() -> None:
    network = torchvision.models.VisionTransformer(16, 4, 2, 2, 24, 48, num_classes=5).eval()
    nn.init.normal_(network.encoder.ln.bias)
    extractor = Extractor(network)
    extractor.survey(16)
    last = extractor.stages(16)[-1].name.rpartition(".")[0] + ".encoder_layer_1"
    said = extractor(IMAGES, levels=(f"{last}@norm@class",), pooled=True)
    torch.testing.assert_close(said.levels[f"{last}@norm@class"].flatten(1), said.pooled)


def test_networks_without_a_final_norm_or_class_token() -> None:
    averaging = Extractor(vit(class_token=False, global_pool="avg"), name="averaging")
    with pytest.raises(UserError, match=r"^level 'blocks.1@norm': averaging has no final norm .*: use 'blocks.1'$"):
        averaging.level("blocks.1@norm", 16)
    registers = Extractor(vit(class_token=False, reg_tokens=4, global_pool="avg"), name="registers")
    with pytest.raises(UserError, match=r"^level 'blocks.1@class': registers has no class token there: use 'blocks"):
        registers.level("blocks.1@class", 16)
    swin = Extractor(
        SwinTransformer(img_size=32, patch_size=2, window_size=4, embed_dim=8, depths=(2, 2), num_heads=(2, 2))
    )
    cnn = Extractor(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4 * 28 * 28, 5)))
    for network, level in ((swin, swin.stages(32)[0].name), (cnn, "0")):
        with pytest.raises(UserError, match="has no final norm"):
            network.level(f"{level}@norm", 32)
        assert not network.has_view(level, "@class")
