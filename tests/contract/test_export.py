"""What leaves lrx is read by peft and transformers with equal outputs."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lrx import registry
from lrx.errors import UserError
from lrx.methods.export import to_merged, to_peft
from lrx.models.base import Backbone

torch.set_num_threads(1)
LOW_RANK = ["lora", "altlora", "altlora_plus", "lora_pro", "scaled_adamw", "adaprelora", "lora_rite"]


class TinyBert(Backbone):
    def forward(self, batch):
        return self.net(**batch).logits.float()


def tiny_bert(seed=0):
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=16, num_labels=3, initializer_range=0.3,
    )  # fmt: skip
    roles = {"query": r"self\.query", "mlp_out": r"\d+\.output\.dense"}
    return TinyBert(BertForSequenceClassification(config), head=["classifier"], roles=roles).eval()


BATCH = {"input_ids": torch.arange(32).view(4, 8), "attention_mask": torch.ones(4, 8, dtype=torch.long)}


def logits(net):
    with torch.no_grad():
        return net(**BATCH).logits


def trained(name, **options):
    """A backbone whose adapter and head have moved by some steps."""
    backbone = tiny_bert()
    method = registry.load("methods", name)(lr=0.05, **options)
    method.adapt(backbone, torch.Generator().manual_seed(0))
    optimizer = method.optimizer(backbone)
    for step in range(4):
        nn.functional.cross_entropy(backbone(BATCH), torch.tensor([0, 1, 2, 0])).backward()
        method.before_step(backbone, optimizer, step)
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.allclose(logits(backbone.net), logits(tiny_bert().net), atol=1e-2)
    return backbone, method


@pytest.mark.parametrize("name", LOW_RANK)
def test_peft_loads_the_adapter(name, tmp_path):
    from peft import PeftModel

    backbone, method = trained(name, rank=4, alpha=6.0, target_modules=["query", "mlp_out"])
    to_peft(method, backbone, tmp_path, base_model_name="somewhere/tiny")
    model = PeftModel.from_pretrained(tiny_bert().net, str(tmp_path)).eval()
    torch.testing.assert_close(logits(model), logits(backbone.net), rtol=1e-5, atol=1e-5)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 6)
    assert config["modules_to_save"] == ["classifier"]
    assert config["base_model_name_or_path"] == "somewhere/tiny"
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(t.numel() for t in stored.values()) == sum(
        p.numel() for p in backbone.net.parameters() if p.requires_grad
    )
    torch.testing.assert_close(logits(model.merge_and_unload()), logits(backbone.net), rtol=1e-5, atol=1e-5)


def test_scaling_that_is_no_integer_survives(tmp_path):
    from peft import PeftModel

    backbone, method = trained("lora", rank=3, alpha=2.5, target_modules=["query"])
    to_peft(method, backbone, tmp_path, None)
    model = PeftModel.from_pretrained(tiny_bert().net, str(tmp_path)).eval()
    torch.testing.assert_close(logits(model), logits(backbone.net), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "options"), [("full", {}), ("head", {}), ("lost", {}), ("peft", {"tuner": "ia3"})])
def test_what_is_no_lora_is_refused(name, options, tmp_path):
    backbone, method = trained(name, **options)
    with pytest.raises(UserError, match="merged"):
        to_peft(method, backbone, tmp_path, None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "options"), [("lost", {"rank": 4}), ("noble", {"rank": 4})])
def test_what_cannot_be_merged_is_refused(name, options, tmp_path):
    backbone, method = trained(name, **options)
    with pytest.raises(UserError, match=f"^method={name} cannot be merged into plain weights[^\n]*$"):
        to_merged(method, backbone, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in [*LOW_RANK, "full", "head"]), ("peft", {"tuner": "dora"}),
                          ("lost", {"activation": "none"}), ("noble", {"rank": 4, "activation": "identity"})],
)  # fmt: skip
def test_transformers_loads_the_merged_model(name, options, tmp_path):
    from transformers import AutoModelForSequenceClassification

    backbone, method = trained(name, **options)
    before = {key: value.clone() for key, value in backbone.net.state_dict().items()}
    expected = logits(backbone.net)
    to_merged(method, backbone, tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
    after = backbone.net.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_other_networks_are_merged_into_safetensors(tmp_path):
    class Plain(Backbone):
        def forward(self, batch):
            return self.net(batch["x"])

    def build():
        torch.manual_seed(0)
        return Plain(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), head=["2"], roles={})

    backbone, method = build(), registry.load("methods", "lora")(lr=0.1, rank=2)
    method.adapt(backbone, torch.Generator().manual_seed(0))
    with torch.no_grad():
        method.pairs(backbone)[0].B.normal_()
    to_merged(method, backbone, tmp_path)
    other = build()
    other.net.load_state_dict(load_file(tmp_path / "model.safetensors"))
    x = {"x": torch.randn(5, 6)}
    torch.testing.assert_close(other(x), backbone(x), rtol=1e-5, atol=1e-6)
