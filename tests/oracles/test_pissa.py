"""PiSSA against its equations in NumPy float64, peft's initialisation and training, and PyTorch's fast SVD."""

import numpy as np
import pytest
import torch

from lrx.methods.pissa import PiSSA
from lrx.nn.lowrank import lowrank_layers, matrix
from lrx.nn.svd import truncated_svd
from tests.contract.test_methods import adapted as adapted_bert
from tests.contract.test_methods import logits, tiny_bert, train
from tests.oracles.one_matrix import Adam, batch, gradient, one_matrix, trained

torch.set_num_threads(1)
OPTIONS = {"lr": 0.01, "rank": 3, "alpha": 6.0}


def adapted(m=5, n=7, **options):
    """In float64 from the start: its SVD too."""
    backbone, method = one_matrix(m, n), PiSSA(**{**OPTIONS, **options})
    method.adapt(backbone, torch.Generator().manual_seed(0))
    backbone.double()
    ((_, layer),) = lowrank_layers(backbone.net)
    U, S, V = truncated_svd(matrix(layer.base), layer.rank)
    root = (S / layer.scaling).sqrt()
    layer.anchor(U * root, (V * root).mT)
    return backbone, method, layer


@pytest.mark.parametrize("shape", [(5, 7), (8, 4)])
def test_start_is_the_principal_part(shape):
    """(2) to (4), with the signs of the triplets free."""
    backbone, _, layer = adapted(*shape)
    W, s = layer.weight.numpy(), 2.0
    U, S, Vt = np.linalg.svd(W, full_matrices=False)
    B, A = layer.B.detach().numpy(), layer.A.detach().numpy()
    signs = np.sign((U[:, :3] * B).sum(0))
    np.testing.assert_allclose(B, signs * U[:, :3] * np.sqrt(S[:3] / s), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(A, (signs * np.sqrt(S[:3] / s))[:, None] * Vt[:3], rtol=1e-10, atol=1e-14)
    residual = W - s * B @ A
    np.testing.assert_allclose(np.linalg.svd(residual, compute_uv=False)[: len(S) - 3], S[3:], rtol=1e-10)
    x = batch(*shape)["x"]
    assert torch.equal(backbone({"x": x}), one_matrix(*shape).double()({"x": x}))


def test_ten_steps_equal_the_equations():
    """(5) with the residual formed, as the paper has it."""
    backbone, method, layer = adapted(weight_decay=0.1)
    before, data, s = layer.weight.clone(), batch(), 2.0
    B, A = layer.B.detach().numpy().copy(), layer.A.detach().numpy().copy()
    residual = before.numpy() - s * B @ A
    losses = trained(backbone, method, data, 10)
    step_A, step_B = Adam(0.01, 0.1), Adam(0.01, 0.1)
    for t in range(10):
        W = residual + s * B @ A
        loss = 0.5 * np.square(data["x"].numpy() @ W.T - data["y"].numpy()).sum()
        assert losses[t] == pytest.approx(loss, rel=1e-12)
        G = gradient(W, data)
        A, B = step_A(A, s * B.T @ G), step_B(B, s * G @ A.T)
    np.testing.assert_allclose(layer.B.detach().numpy(), B, rtol=1e-9)
    np.testing.assert_allclose(layer.A.detach().numpy(), A, rtol=1e-9)
    assert torch.equal(layer.weight, before), "the backbone's matrix stays as it was"
    merged = residual + s * B @ A
    np.testing.assert_allclose(layer.merged().weight.detach().numpy(), merged, rtol=0, atol=1e-6)


def test_it_starts_and_trains_as_in_peft():
    ours, method = adapted_bert("pissa", rank=4, alpha=6.0, niter=None, lr=1e-2, head_lr=1e-2)
    options = {"r": 4, "lora_alpha": 6, "init_lora_weights": "pissa"}
    rates = {"lr": 1e-2, "head_lr": 1e-2, "weight_decay": 0.0}
    theirs, reference = adapted_bert("peft", options=options, target_modules="all-linear", **rates)
    for pair in method.pairs(ours):
        layer = theirs.net.get_submodule(pair.name)
        product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        torch.testing.assert_close(pair.B @ pair.A, product, rtol=1e-3, atol=1e-5)
    a = train(ours, method, method.optimizer(ours), 8)
    b = train(theirs, reference, reference.optimizer(theirs), 8)
    torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=1e-3, atol=1e-4)
    assert abs(a[-1] - a[0]) > 0.05, "something was trained"
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("shape", [(40, 30), (30, 40)])
@pytest.mark.parametrize("niter", [0, 4])
def test_fast_svd_is_that_of_pytorch(shape, niter):
    W = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        torch.manual_seed(7)
        U, S, V = torch.svd_lowrank(W, 6, niter=niter)
    u, s, v = truncated_svd(W, 6, iterations=niter, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(s, S, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close((u * s) @ v.mT, (U * S) @ V.mT, rtol=1e-4, atol=1e-4)
    if niter:
        exact = torch.linalg.svdvals(W)[:6]
        assert (s <= exact * (1 + 1e-5)).all()
        assert (s > 0.85 * exact).all()


def test_in_half_precision_the_start_is_exact_and_the_matrix_is_not_rounded():
    backbone = tiny_bert()
    backbone.net.bfloat16()
    expected = logits(backbone)
    weights = {name: p.clone() for name, p in backbone.net.named_parameters()}
    method = PiSSA(lr=1e-2, rank=4)
    method.adapt(backbone, torch.Generator().manual_seed(0))
    assert torch.equal(logits(backbone), expected)
    for pair in method.pairs(backbone):
        assert pair.A.dtype == torch.float32
        assert torch.equal(pair.weight, weights[f"{pair.name}.weight"])
        U, S, V = truncated_svd(pair.weight, 4)
        torch.testing.assert_close(pair.scaling * pair.B @ pair.A, (U * S) @ V.mT, rtol=1e-3, atol=1e-5)
