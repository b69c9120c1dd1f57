"""LoRA+ against its equations in NumPy float64, and the groups of the official rule as peft builds them."""

import numpy as np
import pytest
import torch
from torch import nn

from lrx.methods.base import split_trainable
from lrx.methods.lora import LoRA
from lrx.methods.lora_plus import LoRAPlus
from lrx.models.base import Backbone
from tests.oracles.one_matrix import Adam, batch, gradient, one_matrix, trained

torch.set_num_threads(1)


def adapted(cls, **options):
    backbone, method = one_matrix(), cls(**{"lr": 0.01, "rank": 3, "alpha": 6.0, **options})
    method.adapt(backbone, torch.Generator().manual_seed(0))
    backbone.double()
    (pair,) = method.pairs(backbone)
    return backbone, method, pair


@pytest.mark.parametrize("ratio", [16.0, 0.5])
def test_ten_steps_equal_the_equations(ratio):
    backbone, method, pair = adapted(LoRAPlus, weight_decay=0.1, ratio=ratio)
    W, A, B, s, data = pair.weight.numpy(), pair.A.detach().numpy().copy(), np.zeros((5, 3)), 2.0, batch()
    trained(backbone, method, data, 10)
    step_A, step_B = Adam(0.01, 0.1), Adam(0.01 * ratio, 0.1)
    for _ in range(10):
        G = gradient(W + s * B @ A, data)
        A, B = step_A(A, s * B.T @ G), step_B(B, s * G @ A.T)
    np.testing.assert_allclose(pair.B.detach().numpy(), B, rtol=1e-9)
    np.testing.assert_allclose(pair.A.detach().numpy(), A, rtol=1e-9)


def test_at_ratio_one_it_is_lora():
    ours, theirs = adapted(LoRAPlus, ratio=1.0), adapted(LoRA)
    assert trained(*ours[:2], batch(), 10) == trained(*theirs[:2], batch(), 10)
    assert torch.equal(ours[2].A, theirs[2].A)


def test_the_first_step_moves_b_alone_and_ratio_times_as_far_as_lora():
    """Adam's first step has the rate's size in every entry, and A has no gradient while B is 0."""
    sizes = []
    for cls, options in ((LoRA, {}), (LoRAPlus, {"ratio": 16.0})):
        backbone, method, pair = adapted(cls, **options)
        before = pair.A.detach().clone()
        trained(backbone, method, batch(), 1)
        assert torch.equal(pair.A, before)
        sizes.append(pair.B.detach().abs())
    torch.testing.assert_close(sizes[1], 16 * sizes[0], rtol=1e-12, atol=0)


class WithHead(Backbone):
    def forward(self, batch):
        return self.net(batch["x"])


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def test_official_groups():
    """Rates and decays of every trained tensor are those of the official function, which peft carries."""
    from peft import LoraConfig, get_peft_model
    from peft.optimizers import create_loraplus_optimizer

    backbone = WithHead(network(), head=["4"], roles={})
    method = LoRAPlus(lr=1e-3, weight_decay=0.1, rank=2, ratio=20.0, head_bias="ratio", target_modules=["0", "2"])
    method.adapt(backbone, torch.Generator().manual_seed(0))
    names = {id(p): name for name, p in backbone.net.named_parameters()}
    ours = {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in method.optimizer(backbone).param_groups
        for p in group["params"]
    }
    model = get_peft_model(network(), LoraConfig(r=2, target_modules=["0", "2"], modules_to_save=["4"]))
    optimizer = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=20.0, loraplus_weight_decay=0.1
    )
    names = {
        id(p): name.removeprefix("base_model.model.")
        .replace(".modules_to_save.default", "")
        .replace("lora_", "")
        .replace(".default.weight", "")
        for name, p in model.named_parameters()
    }
    theirs = {
        names[id(p)]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]
    }
    assert theirs == ours
    assert ours["4.weight"] == (1e-3, 0.1)
    assert ours["4.bias"] == (20e-3, 0.0)


def test_by_default_the_head_has_one_rate():
    backbone = WithHead(network(), head=["4"], roles={})
    method = LoRAPlus(lr=1e-3, head_lr=5e-4, rank=2, target_modules=["0", "2"])
    method.adapt(backbone, torch.Generator().manual_seed(0))
    head = {id(p) for _, p in split_trainable(backbone)[1]}
    assert len(head) == 2
    rates = {g["lr"] for g in method.optimizer(backbone).param_groups if any(id(p) in head for p in g["params"])}
    assert rates == {5e-4}
