"""LOST against its equations in NumPy float64, and every property that its description states."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lrx.errors import UserError
from lrx.methods.lost import Lost, lost_layers
from lrx.models.base import Backbone
from lrx.nn import lost as lost_nn
from lrx.nn.lost import LostLinear, Spectrum, start_of, top_channels

torch.set_num_threads(1)
SHAPES = [(7, 11), (11, 7), (9, 9)]


class Plain(Backbone):
    def forward(self, batch):
        return self.net(batch["x"])


def one_matrix(m=7, n=11, bias=True, seed=0, **kinds):
    torch.manual_seed(seed)
    return Plain(nn.Sequential(nn.Linear(n, m, bias=bias, dtype=torch.float64)), head=[], roles={}, **kinds)


def adapted(m=7, n=11, bias=True, seed=0, lr=0.01, rank=3, **options):
    backbone = one_matrix(m, n, bias, seed)
    method = Lost(lr=lr, rank=rank, **options)
    method.adapt(backbone, torch.Generator().manual_seed(1))
    return backbone, method, backbone.net[0]


def start(W, rank=3, channels=4, svd=True, choice="l2", band=None, trailing=False, from_complement=False, seed=0):
    return start_of(
        torch.as_tensor(W), rank, channels, svd=svd, choice=choice, band=band, trailing=trailing,
        from_complement=from_complement, generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip


def draw(m, n, seed=0):
    return np.random.default_rng(seed).standard_normal((m, n))


def array(tensor):
    return tensor.detach().numpy().copy()


# The listing.


def literal_start(W, r, K, k, choice, sparse_from):
    """Steps 1 to 5 of the initialisation with loops over triplets; the largest entry of u_i is positive."""
    U, s, Vh = np.linalg.svd(W, full_matrices=False)
    for i in range(len(s)):
        if U[np.abs(U[:, i]).argmax(), i] < 0:
            U[:, i], Vh[i] = -U[:, i], -Vh[i]
    B = np.stack([np.sqrt(s[i]) * U[:, i] for i in range(r)], 1)
    A = np.stack([np.sqrt(s[i]) * Vh[i] for i in range(r)])
    comp = np.zeros_like(W)
    for i in range(r, r + min(k, len(s) - r)):
        comp += s[i] * np.outer(U[:, i], Vh[i])
    score = [np.sqrt((c**2).sum()) if choice == "l2" else np.abs(c).sum() for c in comp.T]
    kept = sorted(sorted(range(W.shape[1]), key=lambda j: -score[j])[:K])
    return A, B, (W if sparse_from == "W" else comp)[:, kept], kept


def act_and_slope(name, h):
    if name == "silu":
        sig = 1 / (1 + np.exp(-h))
        return h * sig, sig * (1 + h * (1 - sig))
    if name == "relu2":
        return np.maximum(h, 0) ** 2, 2 * np.maximum(h, 0)
    if name == "tanh":
        return np.tanh(h), 1 - np.tanh(h) ** 2
    return h, np.ones_like(h)


@pytest.mark.parametrize(
    ("form", "activation", "choice", "sparse_from", "k"),
    [
        ("pretrain", "silu", "l2", "W", 256),
        ("pretrain", "none", "l1", "W_comp", 2),
        ("finetune", "silu", "l2", "W", 256),
        ("finetune", "tanh", "l2", "W_comp", 3),
        ("pretrain", "relu2", "l1", "W", 1),
    ],
)
def test_steps_equal_the_equations(form, activation, choice, sparse_from, k):
    m, n, r, gamma, lr, decay, alpha = 7, 11, 3, 0.7, 0.01, 0.1, 2.0
    W = array(one_matrix(m, n).net[0].weight)
    b = array(one_matrix(m, n).net[0].bias)
    backbone, method, layer = adapted(
        m, n, rank=r, lr=lr, weight_decay=decay, form=form, gamma=gamma, sparsity=0.4, activation=activation,
        channel_choice=choice, sparse_from=sparse_from, band=k, alpha=alpha,
    )  # fmt: skip
    A, B, S, kept = literal_start(W, r, 4, k, choice, sparse_from)
    np.testing.assert_allclose(array(layer.A), A, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(array(layer.B), B, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(array(layer.sparse), S, rtol=1e-9, atol=1e-12)
    assert layer.channels.tolist() == kept

    rng = np.random.default_rng(5)
    optimizer = method.optimizer(backbone)
    scale, base = (1.0, np.zeros_like(W)) if form == "pretrain" else (alpha / r, W)
    values = {"A": A, "B": B, "S": S} | ({"b": b} if form == "pretrain" else {})
    moments = {key: (np.zeros_like(v), np.zeros_like(v)) for key, v in values.items()}
    for t in range(1, 9):
        x, target = rng.standard_normal((6, n)), rng.standard_normal((6, m))
        loss = 0.5 * (backbone({"x": torch.tensor(x)}) - torch.tensor(target)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        A, B, S = values["A"], values["B"], values["S"]
        h, slope = act_and_slope(activation, x @ A.T)
        y = x @ base.T + values.get("b", b) + scale * (gamma * h @ B.T + (1 - gamma) * x[:, kept] @ S.T)
        g = y - target
        grads = {
            "B": scale * gamma * g.T @ h,
            "A": scale * gamma * ((g @ B) * slope).T @ x,
            "S": scale * (1 - gamma) * g.T @ x[:, kept],
            "b": g.sum(0),
        }
        for key, value in values.items():
            M, V = moments[key]
            M, V = 0.9 * M + 0.1 * grads[key], 0.999 * V + 0.001 * grads[key] ** 2
            moments[key] = M, V
            own = decay if value.ndim == 2 else 0.0
            values[key] = value * (1 - lr * own) - lr * (M / (1 - 0.9**t)) / (np.sqrt(V / (1 - 0.999**t)) + 1e-8)
    for key, tensor in (("A", layer.A), ("B", layer.B), ("S", layer.sparse)):
        np.testing.assert_allclose(array(tensor), values[key], rtol=1e-8, atol=1e-10)
    if form == "pretrain":
        np.testing.assert_allclose(array(layer.bias), values["b"], rtol=1e-8, atol=1e-10)
    else:
        np.testing.assert_array_equal(array(layer.base.weight), W)
        np.testing.assert_array_equal(array(layer.base.bias), b)


# The invariants.


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_1_with_the_whole_complement_the_kept_columns_are_those_of_the_matrix(m, n):
    W = draw(m, n)
    begun = start(W, from_complement=True)
    total = begun.B @ begun.A
    total.index_add_(1, begun.channels, begun.sparse)
    U, s, Vh = np.linalg.svd(W, full_matrices=False)
    truncated = (U[:, :3] * s[:3]) @ Vh[:3]
    kept = np.isin(np.arange(n), begun.channels.numpy())
    np.testing.assert_allclose(total.numpy()[:, kept], W[:, kept], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(total.numpy()[:, ~kept], truncated[:, ~kept], rtol=1e-9, atol=1e-12)
    assert np.abs(W - truncated)[:, ~kept].max() > 0.1


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_2_the_energy_outside_the_factors_is_that_of_the_rest_of_the_spectrum(m, n):
    W = torch.tensor(draw(m, n))
    spectrum = Spectrum.of(W)
    B, A = spectrum.factors(3)
    rest = np.linalg.svd(W.numpy(), compute_uv=False)[3:]
    assert (W - B @ A).square().sum().item() == pytest.approx((rest**2).sum(), rel=1e-10)
    scores = torch.linalg.vector_norm(spectrum.complement(3, None), dim=0)
    assert scores.square().sum().item() == pytest.approx((rest**2).sum(), rel=1e-10)


def test_3_no_other_choice_of_channels_holds_more_energy():
    spectrum = Spectrum.of(torch.tensor(draw(7, 9)))
    energy = spectrum.complement(3, None).square().sum(0)
    best = max(energy[list(choice)].sum() for choice in itertools.combinations(range(9), 4))
    kept = top_channels(energy.sqrt(), 4)
    assert energy[kept].sum() == best
    assert kept.tolist() == sorted(kept.tolist())


def test_the_band_decides_the_channels():
    """The whole rest, only r triplets and the smallest triplets choose differently, which an exact SVD confirms."""
    found = {key: [] for key in ("all", "r", "trailing")}
    for seed in range(10):
        W = draw(12, 20, seed)
        found["all"].append(start(W).channels.tolist())
        found["r"].append(start(W, band=3).channels.tolist())
        found["trailing"].append(start(W, band=3, trailing=True).channels.tolist())
        U, s, Vh = np.linalg.svd(W, full_matrices=False)
        norms = np.linalg.norm((U[:, -3:] * s[-3:]) @ Vh[-3:], axis=0)
        assert found["trailing"][-1] == sorted(np.argsort(-norms)[:4])
        assert start(W, band=9).channels.tolist() == start(W, band=256).channels.tolist() == found["all"][-1]
    assert found["all"] != found["r"]
    assert found["r"] != found["trailing"]


@pytest.mark.parametrize("form", ["pretrain", "finetune"])
@pytest.mark.parametrize("sparse", [True, False])
def test_4_parameters_per_matrix(form, sparse):
    m, n, r = 8, 40, 5
    backbone, method, _ = adapted(m, n, rank=r, form=form, sparsity=0.1, sparse=sparse, bias=False)
    K = 4 if sparse else 0
    trained = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
    assert trained == r * (m + n) + m * K == method.trainable_per_matrix(m, n)
    stored = sum(p.numel() for p in backbone.parameters())
    assert stored == trained + (m * n if form == "finetune" else 0)
    assert [method.kept(i) for i in (5, 19, 20, 40)] == ([1, 1, 2, 4] if sparse else [0] * 4)


def test_channels_can_be_a_count():
    _, method, layer = adapted(channels=5)
    assert layer.sparse.shape == (7, 5)
    assert method.trainable_per_matrix(7, 11) == 3 * 18 + 7 * 5


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_5_gamma_at_its_ends_switches_a_path_off(gamma):
    _, _, layer = adapted(gamma=gamma, form="pretrain", sparsity=0.4)
    x = torch.randn(5, 11, dtype=torch.float64)
    expected = layer.bias + (
        nn.functional.silu(x @ layer.A.T) @ layer.B.T if gamma else x[:, layer.channels] @ layer.sparse.T
    )
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    layer(x).square().sum().backward()
    off = [layer.sparse] if gamma else [layer.A, layer.B]
    on = [layer.A, layer.B] if gamma else [layer.sparse]
    assert all(not p.grad.any() for p in off)
    assert all(p.grad.abs().min() > 0 for p in on)


def test_6_other_channels_act_through_a_only():
    _, _, layer = adapted(sparsity=0.4, form="pretrain")
    x = torch.randn(5, 11, dtype=torch.float64)
    other = x.clone()
    dropped = [j for j in range(11) if j not in layer.channels.tolist()]
    other[:, dropped] = torch.randn(5, len(dropped), dtype=torch.float64)
    assert not torch.allclose(layer(x), layer(other))
    with torch.no_grad():
        layer.A.zero_()
    assert torch.equal(layer(x), layer(other))
    other[:, layer.channels[0]] += 1
    assert not torch.allclose(layer(x), layer(other))


def test_7_gradient_of_the_sparse_weight():
    _, _, layer = adapted(sparsity=0.4, gamma=0.3, form="pretrain")
    x = torch.randn(2, 5, 11, dtype=torch.float64)
    y = layer(x)
    g = torch.randn_like(y)
    y.backward(g)
    expected = 0.7 * g.reshape(-1, 7).T @ x.reshape(-1, 11)[:, layer.channels]
    torch.testing.assert_close(layer.sparse.grad, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", ["pretrain", "finetune"])
def test_8_channels_stay_and_are_stored(form):
    backbone, method, layer = adapted(form=form, channel_choice="random", sparsity=0.4)
    before = layer.channels.clone()
    optimizer = method.optimizer(backbone)
    for _ in range(5):
        optimizer.zero_grad()
        backbone({"x": torch.randn(5, 11, dtype=torch.float64)}).square().sum().backward()
        optimizer.step()
    assert torch.equal(layer.channels, before)
    assert torch.equal(method.adapter_state(backbone)["0.channels"], before)
    assert torch.equal(backbone.net.state_dict()["0.channels"], before)

    other = one_matrix()
    again = Lost(lr=0.1, rank=3, form=form, channel_choice="random", sparsity=0.4)
    again.adapt(other, torch.Generator().manual_seed(7))
    assert not torch.equal(other.net[0].channels, before)
    again.load_adapter(other, method.adapter_state(backbone))
    x = {"x": torch.randn(5, 11, dtype=torch.float64)}
    assert torch.equal(other(x), backbone(x))


@pytest.mark.parametrize("form", ["pretrain", "finetune"])
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_9_without_an_activation_it_is_one_matrix(form, sparse, bias):
    W = one_matrix(bias=bias).net[0].weight.detach()
    backbone, method, layer = adapted(bias=bias, form=form, sparse=sparse, activation="none", gamma=0.6, alpha=3.0)
    with torch.no_grad():
        for p in backbone.parameters():
            p.add_(0 if p.shape == W.shape else 0.1 * torch.randn_like(p))
    gamma = 0.6 if sparse else 1.0
    dense = gamma * layer.B @ layer.A
    if sparse:
        scattered = torch.zeros(7, 11, dtype=torch.float64)
        scattered[:, layer.channels] = layer.sparse.detach()
        dense = dense + (1 - gamma) * scattered
    dense = dense if form == "pretrain" else W + 3.0 / 3 * dense
    x = torch.randn(4, 11, dtype=torch.float64)
    expected = layer(x).detach()
    method.merge(backbone)
    assert type(backbone.net[0]) is nn.Linear
    torch.testing.assert_close(backbone.net[0].weight, dense, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(backbone({"x": x}), expected, rtol=1e-12, atol=1e-12)


def test_an_activation_cannot_be_merged():
    backbone, method, layer = adapted()
    assert not method.mergeable
    with pytest.raises(UserError, match=r"^method=lost cannot be merged into plain weights: an activation \(silu\)"):
        method.merge(backbone)
    with pytest.raises(ValueError, match="no single matrix"):
        layer.merged()


def test_10_signs_of_the_svd_matter_with_silu_and_are_fixed(monkeypatch):
    W = draw(7, 11)
    begun = start(W)
    svd = torch.linalg.svd
    flips = torch.tensor([-1.0, 1, -1, -1, 1, 1, -1], dtype=torch.float64)

    def other_lapack(X, full_matrices):
        U, s, Vh = svd(X, full_matrices=full_matrices)
        return U * flips, s, Vh * flips[:, None]

    monkeypatch.setattr(lost_nn.torch.linalg, "svd", other_lapack)
    again = start(W)
    assert torch.equal(begun.A, again.A)
    assert torch.equal(begun.B, again.B)
    assert torch.equal(begun.channels, again.channels)

    x = torch.randn(5, 11, dtype=torch.float64)
    for activation, odd in (("silu", False), ("relu2", False), ("tanh", True), ("none", True)):
        outputs = []
        for sign in (1.0, -1.0):
            flipped = lost_nn.Start(begun.A * sign, begun.B * sign, begun.sparse, begun.channels)
            layer = LostLinear(nn.Linear(11, 7).double(), flipped, gamma=0.5, activation=activation, keep=False)
            outputs.append((layer(x) - layer.bias).detach())
        assert torch.allclose(*outputs, atol=1e-12) == odd


def test_random_factors_are_those_of_cola():
    begun = start(draw(300, 500), rank=200, svd=False, channels=0)
    std = 200**-0.25 * 800**-0.25
    assert begun.sparse is None
    for factor in (begun.A, begun.B):
        assert factor.std().item() == pytest.approx(std, rel=0.02)
        assert abs(factor.mean().item()) < 5 * std / factor.numel() ** 0.5
    assert start(draw(9, 12), svd=False, seed=1).channels.tolist() == start(draw(9, 12), svd=True).channels.tolist()


# Forms, robustness.


def test_auto_follows_where_the_weights_come_from():
    for pretrained in (False, True):
        backbone = one_matrix()
        backbone.pretrained = pretrained
        method = Lost(lr=0.1, rank=2)
        method.adapt(backbone, torch.Generator())
        (layer,) = lost_layers(backbone.net).values()
        assert (layer.base is not None) == pretrained
        assert method.trains_base == (not pretrained)


def test_nothing_of_the_size_of_the_matrix_is_made():
    """Neither stored nor made on the way through a layer: the largest tensor is a batch of outputs."""
    m, n, tokens = 512, 512, 16
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in (out if isinstance(out, tuple | list) else [out]) if torch.is_tensor(t))
            return out

    backbone = Plain(nn.Sequential(nn.Linear(n, m)), head=[], roles={})
    method = Lost(lr=0.1, rank=8, form="pretrain")
    method.adapt(backbone, torch.Generator())
    assert max(p.numel() for p in backbone.parameters()) == 512 * 25
    optimizer = method.optimizer(backbone)
    with Watch():
        backbone({"x": torch.randn(tokens, n)}).sum().backward()
        optimizer.step()
    assert max(sizes) == m * 25  # of W_s and its gradient, K = 25


@pytest.mark.parametrize("form", ["pretrain", "finetune"])
def test_bfloat16_weights(form):
    backbone = Plain(nn.Sequential(nn.Linear(11, 7)).bfloat16(), head=[], roles={})
    method = Lost(lr=0.1, rank=3, form=form, sparsity=0.4)
    method.adapt(backbone, torch.Generator())
    layer = backbone.net[0]
    assert {layer.A.dtype, layer.B.dtype, layer.sparse.dtype} == {torch.float32}
    y = backbone({"x": torch.randn(5, 11).bfloat16()})
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert layer.A.grad.isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        assert backbone({"x": torch.randn(5, 11)}).dtype == torch.bfloat16


def test_a_gradient_that_is_no_number_goes_through():
    backbone, method, _ = adapted()
    optimizer = method.optimizer(backbone)
    backbone({"x": torch.full((2, 11), float("nan"), dtype=torch.float64)}).sum().backward()
    optimizer.step()
    assert backbone({"x": torch.ones(2, 11, dtype=torch.float64)}).isnan().all()


def test_shapes_alone_are_enough():
    """Counting a model's parameters adapts it without data."""
    with torch.device("meta"):
        backbone = Plain(nn.Sequential(nn.Linear(64, 32)), head=[], roles={})
    method = Lost(lr=0.1, rank=4)
    method.adapt(backbone, torch.Generator())
    assert sum(p.numel() for p in backbone.parameters()) == method.trainable_per_matrix(32, 64) + 32


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": 0}, "method.rank=0: the rank must be at least 1"),
        ({"rank": 8}, "method.rank=8: layer '0' is 7 x 11, so the rank must lie in 1..7"),
        ({"gamma": 1.5}, "method.gamma=1.5"),
        ({"gamma": float("nan")}, "method.gamma=nan"),
        ({"sparsity": 0.0}, "method.sparsity=0.0"),
        ({"channels": 0}, "method.channels=0: at least 1 channel is kept; method.sparse=false"),
        ({"channels": 12}, "method.channels=12: layer '0' has 11 input channels"),
        ({"band": 0}, "method.band=0"),
        ({"alpha": 0.0}, "method.alpha=0.0"),
        ({"target_modules": ["query"]}, "'query' matches no layer"),
    ],
)
def test_bad_options_are_user_errors(options, words):
    with pytest.raises(UserError) as caught:
        adapted(**options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_weight_that_is_not_finite_is_a_user_error():
    backbone = one_matrix()
    with torch.no_grad():
        backbone.net[0].weight[0, 0] = float("nan")
    with pytest.raises(UserError, match="the weight of layer '0' is not finite"):
        Lost(lr=0.1, rank=2).adapt(backbone, torch.Generator())
