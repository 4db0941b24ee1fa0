"""Low-rank updates and stacked heads against their equations, one member at a time."""

import pytest
import torch
from deepens.ensembles.families.adapters import Adapter, Update, add_updates
from deepens.ensembles.families.member_heads import MemberHeads
from torch import nn

MEMBERS, BATCH, TOKENS, INPUTS, OUTPUTS, RANK = 3, 2, 4, 5, 6, 2


def _random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).double()


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("parts", [(), (None,), (0, 1, 2), (0, 2), (1,)])
def test_updates_follow_the_equation(shared, parts):
    joint = parts not in ((), (None,))
    width = 3 * OUTPUTS if joint else OUTPUTS
    tokens = _random(BATCH if shared else MEMBERS * BATCH, TOKENS, INPUTS)
    weight, bias = _random(width, INPUTS), _random(width)
    updates = [
        Update(part, _random(MEMBERS, RANK, INPUTS) + n, _random(MEMBERS, OUTPUTS, RANK) - n)
        for n, part in enumerate(parts)
    ]
    result = add_updates(
        nn.functional.linear(tokens, weight, bias),
        tokens,
        updates,
        num_members=MEMBERS,
        scaling=0.7,
        shared=shared,
    )
    assert result.shape == (MEMBERS * BATCH, TOKENS, width)
    for index, own in enumerate(result.split(BATCH)):
        merged = weight.clone()
        for update in updates:
            start = (update.part or 0) * OUTPUTS
            merged[start : start + OUTPUTS] += 0.7 * update.up[index] @ update.down[index]
        rows = tokens if shared else tokens.split(BATCH)[index]
        expected = nn.functional.linear(rows, merged, bias)
        torch.testing.assert_close(own, expected, rtol=0, atol=1e-12)


def test_product_of_an_adapter_is_b_a():
    adapter = Adapter(MEMBERS, RANK, inputs=INPUTS, outputs=OUTPUTS).double()
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_()
    assert torch.equal(adapter.product(1), adapter.up[1] @ adapter.down[1])


@pytest.mark.parametrize("norm", [True, False])
def test_stacked_heads_are_the_plain_ones(norm):
    heads = MemberHeads(MEMBERS, INPUTS, OUTPUTS, norm=norm).double()
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.normal_()
    features = _random(2, BATCH, INPUTS)
    logits = heads(features, [2, 0])
    for own, row, index in zip(logits, features, [2, 0], strict=True):
        torch.testing.assert_close(own, heads.plain(index)(row), rtol=0, atol=1e-12)


def test_heads_are_float32_under_autocast_too():
    heads = MemberHeads(1, INPUTS, OUTPUTS, norm=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert heads(torch.ones(1, BATCH, INPUTS, dtype=torch.bfloat16), [0]).dtype == torch.float32


def test_head_is_drawn_as_a_linear_layer_s():
    heads = MemberHeads(1, 400, 300, norm=False)
    heads.draw(0, torch.Generator().manual_seed(1))
    bound = 1 / 20  # 1 / sqrt(inputs), of a uniform draw as `nn.Linear` makes it
    for drawn in (heads.weight, heads.bias):
        assert drawn.abs().max().item() <= bound
        assert drawn.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
