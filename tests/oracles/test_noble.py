"""NOBLE against its equations in NumPy float64, and every property that its description states."""

import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from torch import nn

from lrx.errors import UserError
from lrx.methods.noble import Noble, noble_layers
from lrx.models.base import Backbone
from lrx.nn.noble import PRESETS, Waves

torch.set_num_threads(1)
NETS = ["cos_net", "cos_net_double", "gelu_net", "silu_net", "tanh_net", "leakyrelu_net", "swiglu_net"]
OTHERS = [
    "cos", "gelu", "silu", "tanh", "leakyrelu", "gelu_scale", "silu_scale", "tanh_scale", "leakyrelu_scale",
    "silu_shift", "neg_silu", "flip_silu", "neg_gelu", "flip_gelu", "swiglu", "identity", "linear",
]  # fmt: skip


class Plain(Backbone):
    def forward(self, batch):
        return self.net(batch["x"])


def one_matrix(m=7, n=11, bias=True, seed=0):
    torch.manual_seed(seed)
    return Plain(nn.Sequential(nn.Linear(n, m, bias=bias, dtype=torch.float64)), head=[], roles={})


def adapted(m=7, n=11, bias=True, seed=0, lr=0.01, rank=4, moved=0.0, **options):
    """With ``moved`` every parameter is moved that far from the start, so that nothing is near zero."""
    backbone = one_matrix(m, n, bias, seed)
    method = Noble(lr=lr, rank=rank, **options)
    method.adapt(backbone, torch.Generator().manual_seed(1))
    with torch.no_grad():
        for p in backbone.parameters():
            p.add_(moved * torch.randn_like(p))
    return backbone, method, backbone.net[0]


def array(tensor):
    return tensor.detach().numpy().copy()


def batch(tokens=6, n=11, seed=0):
    return torch.randn(tokens, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# The listing.


@pytest.mark.parametrize("preset", ["repo", "paper_port"])
def test_steps_equal_the_equations(preset):
    """CosNet, its backward pass by hand, AdamW with the rate of each parameter; decay on matrices only."""
    m, n, r, lr, decay = 7, 11, 4, 0.01, 0.1
    backbone, method, layer = adapted(m, n, rank=r, lr=lr, weight_decay=decay, preset=preset, moved=0.3)
    net = layer.branch.sigma
    first, second = net.acts
    tensors = {
        "W": layer.weight, "b": layer.bias, "D": layer.branch.D, "U": layer.branch.U, "F": net.inner[0].F,
        "w1": first.w, "p1": first.p, "w2": second.w, "p2": second.p,
    }  # fmt: skip
    rates = {"U": (m / r) ** 0.4, "F": (m / r) ** 0.5, "f0": (m / r) ** 0.5, "w1": 2, "w2": 2, "p1": 4, "p2": 4}
    if preset == "repo":
        tensors |= {"d0": layer.branch.d, "f0": net.inner[0].f}
    else:
        rates = {"U": (m / r) ** 0.6, "F": (m / r) ** 0.45, "w1": 3, "w2": 3, "p1": 5, "p2": 5}
        assert layer.branch.d is None
        assert net.inner[0].f is None
    assert len(tensors) == len(list(backbone.parameters()))
    v = {key: array(t) for key, t in tensors.items()}
    moments = {key: (np.zeros_like(x), np.zeros_like(x)) for key, x in v.items()}
    optimizer = method.optimizer(backbone)
    rng = np.random.default_rng(3)
    for t in range(1, 9):
        x, target = rng.standard_normal((6, n)), rng.standard_normal((6, m))
        optimizer.zero_grad()
        (0.5 * (backbone({"x": torch.tensor(x)}) - torch.tensor(target)).square().sum()).backward()
        optimizer.step()

        h = x @ v["D"].T + v.get("d0", 0)
        z1 = v["w1"] * h + v["p1"]
        h1 = np.cos(z1)
        h2 = h1 @ v["F"].T + v.get("f0", 0)
        z2 = v["w2"] * h2 + v["p2"]
        h3 = np.cos(z2)
        g = x @ v["W"].T + v["b"] + h3 @ v["U"].T - target
        dz2 = -(g @ v["U"]) * np.sin(z2)
        dh2 = dz2 * v["w2"]
        dz1 = -(dh2 @ v["F"]) * np.sin(z1)
        dh = dz1 * v["w1"]
        grads = {
            "W": g.T @ x, "b": g.sum(0), "U": g.T @ h3, "p2": dz2.sum(0), "w2": (dz2 * h2).sum(0), "F": dh2.T @ h1,
            "f0": dh2.sum(0), "p1": dz1.sum(0), "w1": (dz1 * h).sum(0), "D": dh.T @ x, "d0": dh.sum(0),
        }  # fmt: skip
        for key, value in v.items():
            M, V = moments[key]
            M, V = 0.9 * M + 0.1 * grads[key], 0.999 * V + 0.001 * grads[key] ** 2
            moments[key] = M, V
            rate = lr * rates.get(key, 1)
            step = rate * (M / (1 - 0.9**t)) / (np.sqrt(V / (1 - 0.999**t)) + 1e-8)
            v[key] = value * (1 - rate * (decay if value.ndim == 2 else 0)) - step
    for key, tensor in tensors.items():
        np.testing.assert_allclose(array(tensor), v[key], rtol=1e-8, atol=1e-10, err_msg=key)


def sigmoid(h):
    return 1 / (1 + np.exp(-h))


def gelu(h):
    return 0.5 * h * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))


SIMPLE = {
    "gelu": gelu,
    "silu": lambda h: h * sigmoid(h),
    "tanh": np.tanh,
    "leakyrelu": lambda h: np.where(h > 0, h, 0.01 * h),
    "swiglu": lambda h: (lambda g, v: g * sigmoid(g) * v)(*np.split(h, 2, axis=-1)),
}


def literal_sigma(name, h, module, residual_matrix=False, residual_after=False):
    """What the name says, from the module's numbers."""
    if name == "cos":
        return np.cos(array(module.w) * h + array(module.p))
    if "_net" in name:
        g = name.partition("_net")[0]
        acts = [(lambda a, c=c: np.cos(array(c.w) * a + array(c.p))) if g == "cos" else SIMPLE[g] for c in module.acts]
        y = acts[0](h)
        for act, inner in zip(acts[1:], module.inner, strict=True):
            y = y @ array(inner.F).T + array(inner.f)
            y = act(y + h if residual_matrix else y)
        return y + h if residual_after else y
    if name.endswith("_scale"):
        return SIMPLE[name[:-6]](h) * array(module.a) + array(module.c)
    if name == "silu_shift":
        return SIMPLE["silu"](h) + array(module.c)
    if name.startswith("neg_"):
        return -SIMPLE[name[4:]](h)
    if name.startswith("flip_"):
        return -SIMPLE[name[5:]](-h)
    return h if name in ("identity", "linear") else SIMPLE[name](h)


@pytest.mark.parametrize("name", NETS + OTHERS)
def test_every_activation_is_what_its_name_says(name):
    residuals = [{}]
    if name in NETS:
        residuals += [{"residual_matrix": True}]
        if name != "swiglu_net":
            residuals += [{"residual_after": True}, {"residual_matrix": True, "residual_after": True}]
    for options in residuals:
        _, method, layer = adapted(activation=name, moved=0.5, **options)
        x = batch()
        D, d = array(layer.branch.D), layer.branch.d
        h = x.numpy() @ D.T + (0 if d is None else array(d))
        assert (d is None) == (name == "identity")
        expected = x.numpy() @ array(layer.weight).T + array(layer.bias)
        expected += literal_sigma(name, h, layer.branch.sigma, **options) @ array(layer.branch.U).T
        np.testing.assert_allclose(array(layer(x)), expected, rtol=1e-10, atol=1e-12)
        assert len(D) == (8 if name.startswith("swiglu") else 4)
        # The formula of the costs, biases of the layer left out.
        assert sum(p.numel() for p in layer.parameters()) - 7 == method.trainable_per_matrix(7, 11)


# The invariants.


def test_1_the_branch_is_bounded():
    _, _, layer = adapted(moved=0.5)
    x = 1e3 * batch(500)
    h3 = layer.branch.sigma(x @ layer.branch.D.T + layer.branch.d)
    assert h3.abs().max() <= 1
    bound = math.sqrt(4) * torch.linalg.matrix_norm(layer.branch.U, ord=2)
    assert layer.branch(x).norm(dim=1).max() <= bound
    assert (layer(x) - layer.branch(x)).norm(dim=1).max() > bound


def test_2_the_start_is_the_half_scale_layer_and_one_percent():
    _, _, layer = adapted(256, 400, rank=64)
    assert layer.weight.std().item() == pytest.approx(0.5 / 20, rel=0.02)
    assert not layer.bias.any()
    x = batch(200, 400)
    main, branch = nn.functional.linear(x, layer.weight), layer.branch(x)
    assert 0.001 < (branch.std() / main.std()).item() < 0.03
    with torch.no_grad():
        layer.branch.U.zero_()
    assert torch.equal(layer(x), main + layer.bias)


@pytest.mark.parametrize("preset", ["repo", "paper_port"])
def test_the_start_of_every_part(preset):
    n, r = 400, 100
    _, _, layer = adapted(300, n, rank=r, preset=preset)
    branch = layer.branch
    net, (F_,) = branch.sigma, branch.sigma.inner
    even = preset == "paper_port"
    for tensor, std in (
        (layer.weight, 0.5 / math.sqrt(n)),
        (branch.D, 1 / math.sqrt(n) / (math.sqrt(3) if even else 1)),
        (branch.U, 0.01 / math.sqrt(r)),
        (F_.F, 1 / math.sqrt(r) if even else 0.5 / math.sqrt(r)),
        *((act.p, 0.1) for act in net.acts),
    ):
        assert tensor.std().item() == pytest.approx(std, rel=0.25 if tensor.ndim == 1 else 0.03)
        assert abs(tensor.mean().item()) < 5 * std / math.sqrt(tensor.numel())
    # Uniform numbers end at sqrt(3) standard deviations, normal ones do not.
    assert all((t.abs().max() < 1.75 * t.std()).item() == even for t in (layer.weight, branch.D, F_.F))
    assert all(0.8 <= act.w.min() < 0.82 and 1.18 < act.w.max() <= 1.2 for act in net.acts)
    assert not torch.equal(net.acts[0].w, net.acts[1].w)
    if preset == "repo":
        assert not branch.d.any()
        assert 0.9 / math.sqrt(r) < F_.f.abs().max() <= 1 / math.sqrt(r)


def test_inner_matrices_of_the_double_net_start_larger():
    _, _, layer = adapted(300, 400, rank=100, activation="cos_net_double")
    assert [inner.F.std().item() for inner in layer.branch.sigma.inner] == pytest.approx([0.1, 0.1], rel=0.03)


def test_3_parameters_and_gradients():
    m, n, r = 7, 11, 4
    backbone, method, layer = adapted(m, n, rank=r)
    extra = r * (n + m) + r**2 + 6 * r
    assert method.trainable_per_matrix(m, n) == m * n + extra
    assert sum(p.numel() for p in layer.branch.parameters()) == extra
    assert sum(p.numel() for p in backbone.parameters()) == m * n + m + extra
    for zero in (False, True):
        if zero:
            with torch.no_grad():
                layer.branch.U.zero_()
        backbone.zero_grad()
        layer(batch()).square().sum().backward()
        moved = {name for name, p in layer.branch.named_parameters() if p.grad.abs().max() > 0}
        assert moved == ({"U"} if zero else {name for name, _ in layer.branch.named_parameters()})


def test_4_symmetries_of_a_cosine():
    _, _, layer = adapted(moved=0.5)
    x = batch()
    expected = layer(x)
    with torch.no_grad():
        for act in layer.branch.sigma.acts:
            act.p[0] += 2 * math.pi
            act.w[1], act.p[1] = -act.w[1], -act.p[1]
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_5_lipschitz_bound():
    _, _, layer = adapted(moved=0.7)
    branch, net = layer.branch, layer.branch.sigma
    first, second = net.acts
    norm = lambda M: torch.linalg.matrix_norm(M, ord=2)  # noqa: E731
    bound = (norm(branch.U) * second.w.abs().max() * norm(net.inner[0].F) * first.w.abs().max() * norm(branch.D)).item()
    largest = max(norm(torch.autograd.functional.jacobian(branch, x)).item() for x in batch(100))
    assert 0.1 * bound < largest <= bound


@pytest.mark.parametrize("bias", [True, False])
def test_6_a_linear_branch_can_be_merged(bias):
    backbone, method, layer = adapted(bias=bias, activation="identity", moved=0.3)
    assert method.mergeable
    W = layer.weight + layer.branch.U @ layer.branch.D
    x = batch()
    expected = layer(x).detach()
    method.merge(backbone)
    assert type(backbone.net[0]) is nn.Linear
    torch.testing.assert_close(backbone.net[0].weight, W, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(backbone({"x": x}), expected, rtol=1e-12, atol=1e-12)
    assert (backbone.net[0].bias is None) == (not bias)


def test_6_a_cosine_branch_is_not_additive():
    backbone, method, layer = adapted(moved=0.3)
    a, b = batch(seed=1), batch(seed=2)
    assert (layer.branch(a + b) - layer.branch(a) - layer.branch(b)).abs().max() > 0.1
    assert not method.mergeable
    with pytest.raises(UserError, match=r"^method=noble cannot be merged into plain weights: its cos_net branch"):
        method.merge(backbone)
    with pytest.raises(ValueError, match="no single matrix"):
        layer.merged()


@pytest.mark.parametrize("two_sided", [False, True])
def test_7_every_parameter_has_one_rate(two_sided):
    backbone, method, layer = adapted(7, 11, rank=4, lr=1e-3, weight_decay=0.1, two_sided=two_sided)
    branch, net = layer.branch, layer.branch.sigma
    groups = defaultdict(list)
    for group in method.optimizer(backbone).param_groups:
        for p in group["params"]:
            groups[id(p)].append((group["lr"], group["weight_decay"]))
    assert {key: len(found) for key, found in groups.items()} == {id(p): 1 for p in backbone.parameters()}
    ratio = 7 / 4
    expected = [
        (layer.weight, 1, 0.1), (layer.bias, 1, 0), (branch.d, 1, 0),
        (branch.U, ratio**0.2 if two_sided else ratio**0.4, 0.1), (branch.D, ratio**0.2 if two_sided else 1, 0.1),
        (net.inner[0].F, ratio**0.5, 0.1), (net.inner[0].f, ratio**0.5, 0),
        *((act.w, 2, 0) for act in net.acts), *((act.p, 4, 0) for act in net.acts),
    ]  # fmt: skip
    assert len(expected) == len(groups)
    for p, factor, decay in expected:
        assert groups[id(p)] == [(pytest.approx(1e-3 * factor, rel=1e-12), decay)]
    assert len(method.rate_factors(backbone)) == len(list(branch.parameters()))


def test_7_at_full_rank_no_matrix_has_a_rate_of_its_own():
    for preset in PRESETS:
        backbone, method, _ = adapted(7, 11, rank=7, preset=preset)
        factors = method.rate_factors(backbone)
        matrices = {name for name, p in backbone.net.named_parameters() if p.ndim == 2}
        assert {factors[name] for name in matrices & factors.keys()} == {1.0}


def test_rates_can_be_given():
    options = {"up_power": 1.0, "inner_power": 0.0, "frequency_rate": 7.0, "phase_rate": 8.0}
    backbone, method, _ = adapted(8, 11, rank=4, **options)
    found = {name.rpartition(".")[2]: k for name, k in method.rate_factors(backbone).items()}
    assert found == {"U": 2.0, "D": 1.0, "d": 1.0, "F": 1.0, "f": 1.0, "w": 7.0, "p": 8.0}


def test_8_state_and_the_name_of_the_main_weight():
    backbone, method, layer = adapted(train_frequencies=False, moved=0.3)
    assert layer.weight is dict(backbone.net.named_parameters())["0.weight"]
    assert "0.bias" in backbone.net.state_dict()
    state = {name: value.clone() for name, value in method.adapter_state(backbone).items()}
    assert state.keys() == backbone.net.state_dict().keys()
    assert {"0.branch.sigma.acts.0.w", "0.branch.sigma.acts.1.w"} <= state.keys()
    other = one_matrix(seed=5)
    again = Noble(lr=0.1, rank=4, train_frequencies=False)
    again.adapt(other, torch.Generator().manual_seed(9))
    assert not torch.equal(other({"x": batch()}), backbone({"x": batch()}))
    again.load_adapter(other, state)
    assert torch.equal(other({"x": batch()}), backbone({"x": batch()}))


def test_9_the_branch_is_a_bias_too():
    _, _, layer = adapted(moved=0.3)
    branch = layer.branch
    at_zero = branch(torch.zeros(1, 11, dtype=torch.float64))
    torch.testing.assert_close(at_zero[0], branch.U @ branch.sigma(branch.d), rtol=1e-12, atol=1e-12)
    assert at_zero.abs().max() > 0.1


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("uniform", [3.0] * 5),
        ("harmonic", [0.5, 1.125, 1.75, 2.375, 3.0]),
        ("geometric", [0.5 * 6 ** (i / 4) for i in range(5)]),
    ],
)
def test_frequencies_without_chance(kind, expected):
    _, _, layer = adapted(8, 11, rank=5, frequencies=kind, frequency_range=(0.5, 3.0), frequency=3.0)
    for act in layer.branch.sigma.acts:
        np.testing.assert_allclose(array(act.w), expected, rtol=1e-6)


def test_frequencies_at_random():
    draws = {}
    for kind in ("harmonic_random", "geometric_random"):
        w, _ = Waves(kind, low=0.1, high=10.0).draw(20_000, torch.Generator().manual_seed(0))
        assert 0.1 <= w.min() < w.max() <= 10
        draws[kind] = w
    assert draws["harmonic_random"].median().item() == pytest.approx(5.05, rel=0.03)
    assert draws["geometric_random"].median().item() == pytest.approx(1.0, rel=0.05)


# Main weight, controls, robustness.


def test_what_becomes_of_the_main_weight():
    W = one_matrix().net[0].weight.detach()
    for init, expected in (("keep", W), ("scale", 0.25 * W), ("redraw", None)):
        for branch in (True, False):
            _, _, layer = adapted(main_init=init, main_scale=0.25, branch=branch)
            assert torch.equal(layer.weight, W if expected is None else expected) == (expected is not None)
            assert (layer.branch is None) == (not branch)
    assert layer.bias.abs().max() == 0  # drawn anew, with the weight
    for pretrained in (False, True):
        backbone = one_matrix()
        backbone.pretrained = pretrained
        Noble(lr=0.1, rank=2).adapt(backbone, torch.Generator())
        assert torch.equal(backbone.net[0].weight, W) == pretrained


def test_without_the_branch_it_is_a_plain_layer():
    backbone, method, layer = adapted(branch=False)
    assert method.mergeable
    assert method.trainable_per_matrix(7, 11) == 77 == sum(p.numel() for p in backbone.parameters()) - 7
    assert torch.equal(layer(batch()), nn.functional.linear(batch(), layer.weight, layer.bias))
    method.merge(backbone)
    assert not noble_layers(backbone.net)


def test_cosines_are_float32_in_half_precision():
    net = nn.Sequential(nn.Linear(64, 32)).bfloat16()
    backbone = Plain(net, head=[], roles={})
    Noble(lr=0.1, rank=8, up_scale=10.0).adapt(backbone, torch.Generator())
    layer = backbone.net[0]
    assert {p.dtype for p in layer.branch.parameters()} == {torch.float32}
    x = (30 * torch.randn(5, 64)).bfloat16()
    y = layer(x)
    assert y.dtype == torch.bfloat16
    expected = nn.functional.linear(x, layer.weight, layer.bias) + layer.branch(x.float()).bfloat16()
    assert torch.equal(y, expected)

    backbone, _, layer = adapted(32, 64, rank=8)
    backbone.float()
    x = 30 * torch.randn(5, 64)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = layer(x)
        main = nn.functional.linear(x, layer.weight, layer.bias)
    assert mixed.dtype == torch.bfloat16
    assert torch.equal(mixed, main + layer.branch(x).bfloat16())


def test_a_gradient_that_is_no_number_goes_through():
    backbone, method, _ = adapted()
    optimizer = method.optimizer(backbone)
    backbone({"x": torch.full((2, 11), float("nan"), dtype=torch.float64)}).sum().backward()
    optimizer.step()
    assert backbone({"x": batch()}).isnan().all()


def test_shapes_alone_are_enough():
    """Counting a model's parameters adapts it without data."""
    with torch.device("meta"):
        backbone = Plain(nn.Sequential(nn.Linear(64, 32)), head=[], roles={})
    method = Noble(lr=0.1, rank=4)
    method.adapt(backbone, torch.Generator())
    assert sum(p.numel() for p in backbone.parameters()) == method.trainable_per_matrix(32, 64) + 32


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": 0}, "method.rank=0: the rank must be at least 1"),
        ({"rank": 8}, "method.rank=8: layer '0' is 7 x 11, so the rank must lie in 1..7"),
        ({"up_scale": -1.0}, "method.up_scale=-1.0"),
        ({"phase_std": -1.0}, "method.phase_std=-1.0"),
        ({"main_scale": 0.0}, "method.main_scale=0.0"),
        ({"frequency_rate": 0.0}, "method.frequency_rate=0.0"),
        ({"frequency_range": (1.2, 0.8)}, "method.frequency_range=[1.2, 0.8]: [low, high] with 0 < low <= high"),
        ({"activation": "gelu", "residual_after": True}, "method.residual_after=true: activation 'gelu' is no net"),
        ({"activation": "swiglu_net", "residual_after": True}, "method.residual_after=true: swiglu_net gives r"),
        ({"target_modules": ["query"]}, "'query' matches no layer"),
    ],
)
def test_bad_options_are_user_errors(options, words):
    with pytest.raises(UserError) as caught:
        adapted(**options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


# The quick check: a target of high frequency, which no linear branch can follow.


def fit(activation, seed, branch=True, steps=200):
    """Mean squared error over the variance of sin(6 u^T x) + cos(5 v^T x), x in [-1, 1]^2, after training one layer."""
    torch.manual_seed(seed)
    u, v = (nn.functional.normalize(torch.randn(2), dim=0) for _ in range(2))
    x = 2 * torch.rand(512, 2) - 1
    y = (torch.sin(6 * x @ u) + torch.cos(5 * x @ v))[:, None]
    wide = torch.cat([x, torch.ones(512, 1)], 1).repeat(1, 16)  # (512, 48): in as wide a layer as the rank wants
    backbone = Plain(nn.Sequential(nn.Linear(48, 16), nn.Linear(16, 1)), head=["1"], roles={})
    method = Noble(lr=3e-3, rank=16, activation=activation, branch=branch)
    method.adapt(backbone, torch.Generator().manual_seed(seed))
    optimizer = method.optimizer(backbone)
    for _ in range(steps):
        loss = (backbone({"x": wide}) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item() / y.var().item()


def test_a_cosine_branch_follows_what_a_linear_one_cannot():
    for seed in range(3):
        cosine, linear, none = fit("cos_net", seed), fit("linear", seed), fit("", seed, branch=False)
        assert cosine < 0.01, (cosine, linear)
        assert linear > 0.9, linear  # what is left without anything nonlinear
        assert none == pytest.approx(linear, rel=0.05)
