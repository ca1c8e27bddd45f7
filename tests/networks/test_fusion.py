from __future__ import annotations

import torch

from reldistill.networks.fusion import AttentionFusion


def fusion() -> AttentionFusion:
    torch.manual_seed(0)
    return AttentionFusion([4, 6, 5], [8, 7, 9], teacher_sizes=[(6, 6), (3, 4), None]).eval()


def maps() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = (2, 4, 8, 8), (2, 6, 4, 4), (2, 5)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def test_every_map_has_the_teachers_shape() -> None:
    assert [tuple(one.shape) for one in fusion()(*maps())] == [(2, 8, 6, 6), (2, 7, 3, 4), (2, 9)]


def test_a_stage_holds_itself_and_what_is_deeper() -> None:
    made = fusion()
    for place in range(3):
        given = maps()
        made(*given)[place].square().sum().backward()
        reached = [one.grad is not None and bool(one.grad.any()) for one in given]
        assert reached == [other >= place for other in range(3)]


def test_attention_decides_what_enters() -> None:
    """With shares of 0 for the deeper maps, and 1 for one's own, every stage stands alone."""
    made = fusion()
    for attention in made.attention:
        torch.nn.init.zeros_(attention.weight)
        attention.bias.data = torch.tensor([100.0, -100.0])
    given = maps()
    before = made(*given)
    given[2] = given[2] + 1
    after = made(*given)
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    assert not torch.equal(before[2], after[2])


def test_every_parameter_is_trained() -> None:
    made = fusion()
    sum(one.square().sum() for one in made(*maps())).backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
