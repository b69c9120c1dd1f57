"""Pools and switches of a single low-rank layer."""

import math

import pytest
import torch
from torch import nn

from lrx.methods.switchlora import SwitchLoRA
from lrx.nn.switching import ring_of, std, switch
from tests.oracles.test_switchlora import Net, effective, linear, only

GAIN = math.sqrt(1 / 3)


@pytest.mark.parametrize("kind", ["linear", "convolution"])
@pytest.mark.parametrize("number", [1, 3])
def test_a_switch_keeps_the_effective_matrix_and_loses_no_vector(kind, number):
    torch.manual_seed(0)
    layer = nn.Linear(20, 12, bias=False) if kind == "linear" else nn.Conv2d(5, 12, 2)
    backbone = Net(nn.Sequential(layer), head=(), roles={})
    SwitchLoRA(lr=1, rank=7, target_modules="all").adapt(backbone, torch.Generator().manual_seed(0))
    layer = only(backbone)
    ring, expected = ring_of(layer), effective(layer)
    vectors = {f: sorted(map(tuple, pool.tolist())) for f, pool in (("A", ring.pool_A), ("B", ring.pool_B))}
    for _ in range(40):  # several times round both rings, blocks that wrap around included
        chosen = switch(layer, number)
        components = {f: {i for part in parts for i in range(7)[part]} for f, parts in chosen.items()}
        assert [len(found) for found in components.values()] == [number, number]
        assert components["A"].isdisjoint(components["B"])
        torch.testing.assert_close(effective(layer), expected, rtol=0, atol=1e-5)
        for factor, rows, pool in (("A", layer.A, ring.pool_A), ("B", layer.B.mT, ring.pool_B)):
            slots = ring.slots(factor)
            assert len(set(slots)) == ring.rank
            spare = [row for i, row in enumerate(pool.tolist()) if i not in slots]
            assert sorted(map(tuple, [*rows.tolist(), *spare])) == vectors[factor]


def test_the_start_is_the_matrix_as_it_was_and_has_its_scale():
    for m, n, r in ((48, 64, 8), (96, 64, 4)):
        backbone, method, original = linear(m, n, r)
        layer = only(backbone)
        torch.testing.assert_close(effective(layer), original, rtol=0, atol=1e-6)
        assert not torch.equal(layer.base.weight, original)
        ring = ring_of(layer)
        assert ring.pool_A.shape == (min(m, n), n)
        assert ring.pool_B.shape == (min(m, n), m)
        for pool, deviation in zip((ring.pool_A, ring.pool_B), std(m, n, r), strict=True):
            assert pool.std().item() == pytest.approx(deviation, rel=0.05)
            assert pool.abs().max() <= math.sqrt(3) * deviation
        # The entries of (1/r) B A over all of the pool's vectors: r products of independent entries each.
        product = (ring.pool_B.square().mean() * ring.pool_A.square().mean() / r).sqrt().item()
        assert product == pytest.approx(GAIN / math.sqrt(n), rel=0.05)
        assert method.trainable_per_matrix(m, n) == layer.A.numel() + layer.B.numel()


def test_half_precision_keeps_factors_in_float32_and_rounds_the_matrix():
    torch.manual_seed(0)
    backbone = Net(nn.Sequential(nn.Linear(20, 12)).bfloat16(), head=(), roles={})
    original = backbone.net[0].weight.detach().float().clone()
    SwitchLoRA(lr=1, rank=6).adapt(backbone, torch.Generator().manual_seed(0))
    layer = only(backbone)
    for _ in range(10):
        switch(layer, 2)
    assert layer.A.dtype == layer.B.dtype == ring_of(layer).pool_A.dtype == torch.float32
    assert layer.base.weight.dtype == torch.bfloat16
    # Eleven roundings to 8 bits of a matrix whose entries stay below 1.
    torch.testing.assert_close(effective(layer).float(), original, rtol=0, atol=11 * 2.0**-9)
