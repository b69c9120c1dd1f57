"""Every method in ``conf/method`` keeps the contract of ``lrx/methods/base.py`` and its own declared facts."""

import copy
import inspect
import io
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from lrx import registry
from lrx.errors import UserError
from lrx.methods.base import split_trainable
from lrx.models.base import Backbone
from lrx.nn.lowrank import lowrank_layers
from lrx.nn.optim import state_bytes
from lrx.nn.targets import find_targets
from tests.conftest import FOR_POLICIES

torch.set_num_threads(1)
CONF = Path(__file__).resolve().parents[2] / "conf" / "method"
# All but the one that trains nothing.
ALL = sorted(path.stem for path in CONF.glob("*.yaml") if path.stem != "none")
NAMES = [name for name in ALL if name not in FOR_POLICIES]
# Further cases: a name and options that change how a method works inside. Learning rates: see FAST.
VARIANTS = {
    "altlora-joint": ("altlora", {"mode": "joint", "first": "B", "bias_correction": True}),
    "altlora_plus-official": (
        "altlora_plus",
        {"mode": "joint", "bias_correction": "first", "momentum": "untransported"},
    ),
    "altlora-phases": ("altlora", {"flip_every": 3}),
    "dora-exact": ("dora", {"norm_gradient": "exact"}),
    "pissa-exact": ("pissa", {"niter": None}),
    "scaled_adamw-moved": ("scaled_adamw", {"b_gram": "moved"}),
    "adaprelora-sgd": ("adaprelora", {"form": "sgd", "statistics": "surrogate"}),
    "lora_rite-official": ("lora_rite", {"escape": False, "cap": 1.0}),
    "lora_sb-official": ("lora_sb", {"svd": "randomized", "weighting": "official", "samples": 24}),
    "switchlora-often": ("switchlora", {"interval": 4, "freeze_steps": 2, "decay_fraction": 1.0}),
    "relora-cycles": ("relora", {"cycle": 4, "restart_warmup": 3, "reset": "magnitude", "prune": 0.8}),
    "relora-warm": ("relora", {"cycle": 3, "restart_warmup": 1, "full_steps": 2, "full_lr": 1e-3}),
    "lost-finetune": ("lost", {"form": "finetune"}),
    "lost-merged": ("lost", {"activation": "none", "init": "random", "channel_choice": "random"}),
    "noble": ("noble", {"rank": 8}),
    "noble-linear": ("noble", {"rank": 8, "activation": "identity"}),
    "noble-swiglu_net": ("noble", {"rank": 4, "activation": "swiglu_net", "preset": "paper_port", "main_init": "keep"}),
    "peft-dora": ("peft", {"tuner": "dora"}),
    "peft-pissa": ("peft", {"tuner": "pissa"}),
    "peft-ia3": ("peft", {"tuner": "ia3", "target_modules": ["key", "value"]}),
    "peft-vera": ("peft", {"tuner": "vera", "options": {"r": 8}}),
    "peft-boft": ("peft", {"tuner": "boft", "options": {"boft_block_size": 4}}),
    "peft-adalora": ("peft", {"tuner": "adalora", "options": {"init_r": 6, "target_r": 3, "tinit": 2, "tfinal": 2}}),
    "peft-fourierft": ("peft", {"tuner": "fourierft", "options": {"n_frequency": 50}}),
}
VARIANTS |= {
    "galore-refreshed": ("galore", {"every": 3, "side": "reverse"}),
    "dct_adamw-error": ("dct_adamw", {"error_feedback": "full", "every": 3, "transform": "matmul", "basis": "dct3"}),
    "dion-transposed": ("dion", {"wide": "transposed"}),
    "muon_nesterov-sketched": ("muon_nesterov", {"rank": 3, "oversampling": 2, "sketch_side": "long"}),
}
CASES = {name: (name, {}) for name in NAMES} | VARIANTS
# A rate of the right order for the toy problem, where the YAML's is for large models.
FAST = {
    "full": 1e-3,
    "head": 0.1,
    "altlora": 0.3,
    "altlora_plus-official": 1e-3,
    "relora-cycles": 3e-4,
    "relora-warm": 3e-3,
    "peft-ia3": 0.1,
    "peft-vera": 0.1,
    "peft-boft": 0.1,
    "peft-fourierft": 1.0,
}

# What these add to the network is a function of its weights, or the same for every seed.
NOTHING_DRAWN = {
    "lora_sb", "lost", "lost-finetune", "peft-boft", "peft-ia3", "peft-pissa", "peft-vera", "pissa-exact",
}  # fmt: skip


class TinyBert(Backbone):
    def forward(self, batch):
        return self.net(**batch).logits.float()


def tiny_bert(seed=0, labels=3):
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    }
    torch.manual_seed(seed)
    config = BertConfig(  # at BERT's own initializer_range of 0.02 no change of the body would reach the logits
        **sizes,
        initializer_range=0.3,
        max_position_embeddings=16,
        num_labels=labels,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    roles = {
        "query": r"self\.query", "key": r"self\.key", "value": r"self\.value",
        "output": r"attention\.output\.dense", "mlp_in": r"intermediate\.dense", "mlp_out": r"\d+\.output\.dense",
    }  # fmt: skip
    return TinyBert(BertForSequenceClassification(config), head=["classifier"], roles=roles).eval()


def batch_of(seed, size=16):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(40, (size, 8), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, torch.randint(3, (size,), generator=generator)


def options_of(case, **overrides):
    name, own = CASES.get(case, (case, {}))
    options = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    assert options.pop("name") == name
    return name, options | own | overrides


def method_of(case, **overrides):
    name, options = options_of(case, **overrides)
    return registry.load("methods", name)(**options)


def adapted(case, seed=0, total=20, **overrides):
    backbone, method = tiny_bert(), method_of(case, **overrides)
    method.adapt(backbone, torch.Generator().manual_seed(seed))
    method.plan(backbone, total)
    warm_start(backbone, method)
    return backbone.eval(), method


def warm_start(backbone, method):
    """From a few batches, where a method starts from data; the others do nothing."""

    def loss(network, batch):
        return nn.functional.cross_entropy(network({k: v for k, v in batch.items() if k != "labels"}), batch["labels"])

    batches = (batch_of(500 + i) for i in range(8))
    method.warm_start(backbone, ({**batch, "labels": labels} for batch, labels in batches), loss)


def train(backbone, method, optimizer, steps, *, first=0, scheduler=None, data=None):
    """Training steps as the modules take them; returns the losses."""
    losses = []
    for step in range(first, first + steps):
        batch, labels = batch_of(1000 + step) if data is None else data
        loss = nn.functional.cross_entropy(backbone(batch), labels)
        losses.append(loss.item())
        penalty = method.penalty(backbone)
        optimizer.zero_grad()
        (loss if penalty is None else loss + penalty).backward()
        method.before_step(backbone, optimizer, step)
        optimizer.step()
        method.after_step(backbone, optimizer, step)
        if scheduler is not None:
            scheduler.step()
    return losses


def logits(backbone):
    with torch.no_grad():
        return backbone(batch_of(7)[0])


def snapshot(backbone):
    return {name: p.detach().clone() for name, p in backbone.net.named_parameters()}


every = pytest.mark.parametrize("case", sorted(CASES))


@pytest.mark.parametrize("name", ALL)
def test_yaml_is_the_constructor(name):
    keys = set(yaml.safe_load((CONF / f"{name}.yaml").read_text()))
    entry = registry.find("methods", name)
    cls = registry.load("methods", name)
    parameters = inspect.signature(cls).parameters
    assert keys == {"name", *parameters}
    assert set(entry.signature) == set(parameters), "what is read statically is what Python sees"
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters.values())
    assert {"lr", "weight_decay", "head_lr"} <= set(parameters)
    for fact in ("name", "version", "paper", "exact_at_init", "mergeable", "peft_form"):
        assert entry.attributes[fact] == getattr(cls, fact), f"{fact} must be a plain literal in the class body"
    assert entry.attributes.get("for_policies", False) == cls.for_policies == (name in FOR_POLICIES)
    assert entry.attributes.get("trains_base", False) == cls.trains_base, "must be a plain literal in the class body"
    assert entry.doc
    assert entry.class_doc
    assert entry.attributes["paper"]


@every
def test_exact_at_init(case):
    expected = logits(tiny_bert())
    backbone, method = adapted(case)
    # Exactly for what is written here; within rounding where a tuner of peft splits or rotates the weight.
    tolerance = 1e-5 if case.startswith("peft") else method.init_tolerance
    assert torch.allclose(logits(backbone), expected, rtol=0, atol=tolerance) == method.exact_at_init


@every
def test_loss_goes_down_by_what_is_adapted(case):
    """With the head held still, so that the adapter alone must do it (the method ``head`` has nothing else)."""
    name = CASES[case][0]
    lr = FAST.get(case, FAST.get(name, 1e-2))
    backbone, method = adapted(case, total=40, lr=lr, head_lr=lr if name == "head" else 1e-12, weight_decay=0.0)
    losses = train(backbone, method, method.optimizer(backbone), 30, data=batch_of(3))
    assert losses[-1] < 0.9 * losses[0], losses[::5]


@every
def test_merge_leaves_outputs_unchanged_and_no_adapter(case):
    backbone, method = adapted(case)
    plain = {name: type(module) for name, module in tiny_bert().net.named_modules()}
    train(backbone, method, method.optimizer(backbone), 4)
    expected = logits(backbone)
    if not method.mergeable:
        with pytest.raises(UserError, match="merge"):
            method.merge(backbone)
        assert torch.equal(logits(backbone), expected)
        return
    method.merge(backbone)
    torch.testing.assert_close(logits(backbone), expected, rtol=1e-5, atol=1e-5)
    assert {name: type(module) for name, module in backbone.net.named_modules()} == plain
    assert not hasattr(backbone.net, "peft_config")


@every
def test_adapter_state_restores_a_trained_backbone(case):
    backbone, method = adapted(case)
    train(backbone, method, method.optimizer(backbone), 4)
    state = {name: value.clone() for name, value in method.adapter_state(backbone).items()}
    other, fresh = adapted(case)
    assert not torch.equal(logits(other), logits(backbone))
    fresh.load_adapter(other, state)
    assert torch.equal(logits(other), logits(backbone))

    key = sorted(state)[0]
    for broken in (
        {k: v for k, v in state.items() if k != key},
        state | {"no.such.tensor": torch.zeros(1)},
        state | {key: torch.zeros(3, 5, 7)},
    ):
        with pytest.raises(ValueError, match="adapter"):
            fresh.load_adapter(other, broken)


def elements(backbone, name, optimizer=None):
    """Trained elements below layer ``name``, its own bias left out; with ``optimizer`` the elements of their state."""
    total = 0
    for key, p in backbone.net.named_parameters():
        if p.requires_grad and key.startswith(name + ".") and key not in (f"{name}.bias", f"{name}.base_layer.bias"):
            states = [] if optimizer is None else optimizer.state[p].values()
            total += p.numel() if optimizer is None else sum(v.numel() for v in states if torch.is_tensor(v) and v.ndim)
    return total


@every
def test_cost_formulas_equal_the_counts(case):
    backbone, method = adapted(case, head_lr=1e-3)
    optimizer = method.optimizer(backbone)
    train(backbone, method, optimizer, 8)
    targets = getattr(method, "target_modules", "all-linear")
    layers = find_targets(tiny_bert().net, targets, roles=backbone.roles, head=backbone.head)
    for name, layer in layers.items():
        m, n = layer.weight.shape
        assert elements(backbone, name) == method.trainable_per_matrix(m, n), name
        assert elements(backbone, name, optimizer) == method.state_per_matrix(m, n), name
    adapter, head = split_trainable(backbone)
    if CASES[case][0] == "head":  # its targets are not adapted
        return
    # Besides the targets, a method that trains the backbone itself trains the rest with AdamW; the others nothing.
    rest = sum(p.numel() for _, p in adapter) - sum(elements(backbone, name) for name in layers)
    assert rest > 0 if method.trains_base else rest == 0
    state = sum(elements(backbone, name, optimizer) for name in layers) + 2 * (rest + sum(p.numel() for _, p in head))
    assert state_bytes(optimizer) == 4 * state


def numbers(backbone, method, optimizer):
    """Everything that a run's next step depends on, by name."""
    states = {f"{i}.{key}": v for i, state in optimizer.state_dict()["state"].items() for key, v in state.items()}
    groups = {f"group{i}": torch.tensor(g.get("calls", 0)) for i, g in enumerate(optimizer.param_groups)}
    return method.adapter_state(backbone) | states | groups


@pytest.mark.parametrize(("case", "total"), [*((case, 20) for case in sorted(CASES)), ("peft-adalora", 7)])
def test_resumed_optimizer_continues_bit_for_bit(case, total):
    """In a new process (fresh objects, other random numbers), and when the same objects are rewound.

    AdaLoRA a second time with so few steps that it has done its last pruning at the checkpoint.
    """
    backbone, method = adapted(case, total=total)
    optimizer = method.optimizer(backbone)
    train(backbone, method, optimizer, 5)
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "adapter": method.adapter_state(backbone)}, file)
    train(backbone, method, optimizer, 8, first=5)
    expected = {name: value.clone() for name, value in numbers(backbone, method, optimizer).items()}

    def goes_on(backbone, method, optimizer):
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        method.load_adapter(backbone, saved["adapter"])
        optimizer.load_state_dict(saved["optimizer"])
        train(backbone, method, optimizer, 8, first=5)
        actual = numbers(backbone, method, optimizer)
        assert actual.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(value, actual[name]), name

    other, again = adapted(case, total=total, seed=0 if case == "peft-pissa" else 9)  # PiSSA changes the frozen weight
    goes_on(other, again, again.optimizer(other))
    goes_on(backbone, method, optimizer)


@every
def test_loading_a_state_leaves_its_source_alone(case):
    backbone, method = adapted(case)
    optimizer = method.optimizer(backbone)
    train(backbone, method, optimizer, 3)
    source = copy.deepcopy(optimizer.state_dict())
    before = copy.deepcopy(source)
    optimizer.load_state_dict(source)
    train(backbone, method, optimizer, 2, first=3)
    for index, state in before["state"].items():
        for key, value in state.items():
            assert torch.equal(value, source["state"][index][key]), key


def test_frozen_parts_of_a_tuner_belong_to_its_state():
    backbone, method = adapted("peft-vera")
    with torch.no_grad():
        for name, value in {**dict(backbone.net.named_parameters()), **dict(backbone.net.named_buffers())}.items():
            if "vera_" in name:
                value.normal_()
    other, fresh = adapted("peft-vera")
    fresh.load_adapter(other, method.adapter_state(backbone))
    assert torch.equal(logits(other), logits(backbone))


@every
def test_equal_generators_give_equal_adapters(case):
    first, same, other = (adapted(case, seed=seed)[0] for seed in (0, 0, 1))
    for (name, a), b in zip(first.net.named_parameters(), same.net.parameters(), strict=True):
        assert torch.equal(a, b), name
    new = dict(first.net.named_parameters()).keys() - dict(tiny_bert().net.named_parameters()).keys()
    random_start = bool(new) and case not in NOTHING_DRAWN
    differs = any(not torch.equal(a, b) for a, b in zip(first.net.parameters(), other.net.parameters(), strict=True))
    assert differs == random_start


def test_global_random_numbers_are_not_touched():
    for case in CASES:
        backbone, method = tiny_bert(), method_of(case)
        torch.manual_seed(5)
        expected = torch.get_rng_state()
        method.adapt(backbone, torch.Generator().manual_seed(0))
        method.optimizer(backbone), method.trainable_per_matrix(16, 16)
        assert torch.equal(torch.get_rng_state(), expected), case


@every
def test_head_is_trained_and_the_rest_is_frozen(case):
    backbone, method = adapted(case)
    before = snapshot(backbone)
    train(backbone, method, method.optimizer(backbone), 3)
    after = snapshot(backbone)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"classifier.weight", "classifier.bias"} <= moved
    trained = {name for name, p in backbone.net.named_parameters() if p.requires_grad}
    absorbing = {f"{name}.base.weight" for name, _ in lowrank_layers(backbone.net)} if method.moves_base else set()
    assert moved <= trained | absorbing
    if not (method.trains_base or method.moves_base):
        assert not any(".base_layer." in name or ".base." in name for name in moved)


@every
def test_learning_rate_schedules_reach_every_parameter(case):
    backbone, method = adapted(case)
    optimizer = method.optimizer(backbone)
    before, outputs = snapshot(backbone), logits(backbone)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0 if step < 2 else 1.0)
    train(backbone, method, optimizer, 2, scheduler=scheduler)
    torch.testing.assert_close(logits(backbone), outputs, rtol=1e-5, atol=1e-5)
    # Factors and matrices may change places where the outputs do not show it.
    places = tuple(f"{name}." for name, _ in lowrank_layers(backbone.net)) if method.moves_base else ()
    for name, value in snapshot(backbone).items():
        assert name.startswith(places) or torch.equal(value, before[name]), f"{name} moved at a rate of 0"
    train(backbone, method, optimizer, 2, first=2, scheduler=scheduler)
    assert any(not torch.equal(value, before[name]) for name, value in snapshot(backbone).items())


@every
def test_head_has_its_own_rate(case):
    backbone, method = adapted(case, lr=1e-3, head_lr=1e-5)
    optimizer = method.optimizer(backbone)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    adapter, head = split_trainable(backbone)
    assert {rate[id(p)] for _, p in head} == {1e-5}
    # What a method trains besides its matrices may have a rate of its own, and its factors different ones.
    own = {1e-3, getattr(method, "rest_lr", None) or 1e-3, 1e-3 * getattr(method, "ratio", 1.0)}
    factors = method.rate_factors(backbone)
    usual = [(name, p) for name, p in adapter if name not in factors]
    assert {rate[id(p)] for _, p in usual} == (own if usual else set())
    assert {name: rate[id(p)] for name, p in adapter if name in factors} == {k: 1e-3 * f for k, f in factors.items()}


@pytest.mark.parametrize("name", ["altlora", "altlora_plus"])
def test_idle_gradients_are_dropped_before_clipping(name):
    backbone, method = adapted(name)
    optimizer = method.optimizer(backbone)
    for step in range(4):
        batch, labels = batch_of(step)
        nn.functional.cross_entropy(backbone(batch), labels).backward()
        method.before_step(backbone, optimizer, step)
        for pair in method.pairs(backbone):
            assert (pair.A.grad is None, pair.B.grad is None) == ((False, True) if step % 2 == 0 else (True, False))
        optimizer.step()
        optimizer.zero_grad()


WRONG = [
    ("lora", {"rank": 0}, "method.rank=0"),
    ("lora", {"rank": 17}, r"method.rank=17: layer 'bert.encoder.layer.0.*' is 16 x 16, so the rank must lie in 1..16"),
    ("lora", {"alpha": 0.0}, "method.alpha=0.0"),
    ("lora", {"lr": 0.0}, "method.lr=0.0"),
    ("lora", {"lr": float("nan")}, "method.lr=nan"),
    ("lora", {"dropout": 1.0}, "method.dropout=1.0"),
    ("full", {"head_lr": -1.0}, "method.head_lr=-1.0"),
    ("head", {"weight_decay": -0.1}, "method.weight_decay=-0.1"),
    ("altlora", {"beta1": 1.0}, "method.beta1=1.0"),
    ("altlora", {"damping": -1e-6}, "method.damping=-1e-06"),
    ("altlora", {"flip_every": 0}, "method.flip_every=0"),
    ("altlora_plus", {"eps": 0.0}, "method.eps=0.0"),
    ("altlora_plus", {"beta2": -0.1}, "method.beta2=-0.1"),
    ("lora_pro", {"damping": -1.0}, "method.damping=-1.0"),
    ("scaled_adamw", {"beta2": 1.5}, "method.beta2=1.5"),
    ("adaprelora", {"damping": -1e-6}, "method.damping=-1e-06"),
    ("lora_rite", {"clip": -1.0}, "method.clip=-1.0"),
    ("lora_xs", {"init_std": -1e-5}, "method.init_std=-1e-05"),
    (
        "lora_xs",
        {"rank": 17},
        r"method.rank=17: layer 'bert.encoder.layer.0.*' is 16 x 16, so the rank must lie in 1..16",
    ),
    ("lora_sb", {"samples": 0}, "method.samples=0"),
    ("lora_sb", {"samples": 129}, "method.samples=129: the training split has only 128 examples"),
    ("lora_sb", {"warmup_ratio": 1.5}, "method.warmup_ratio=1.5"),
    ("switchlora", {"interval": 9}, "method.interval=9: at least 1 and 2 freeze_steps, here 10"),
    ("switchlora", {"freeze_steps": -1}, "method.freeze_steps=-1"),
    ("switchlora", {"decay_fraction": 0.0}, "method.decay_fraction=0.0"),
    ("switchlora", {"rank": 17}, "method.rank=17: layer .* so the rank must lie in 1..16"),
    ("relora", {"cycle": 0}, "method.cycle=0"),
    ("relora", {"restart_warmup": 5000}, r"method.restart_warmup=5000: lies in 0..4999, below method.cycle=5000"),
    ("relora", {"prune": 1.5}, "method.prune=1.5"),
    ("relora", {"full_steps": -1}, "method.full_steps=-1"),
    ("relora", {"full_lr": 0.0}, "method.full_lr=0.0"),
    ("lora_plus", {"ratio": 0.0}, "method.ratio=0.0"),
    ("pissa", {"niter": -1}, "method.niter=-1"),
    ("pissa", {"rank": 17}, "method.rank=17: layer 'bert.encoder.layer.0.*' is 16 x 16"),
    ("lora_ga", {"init_batches": 0}, "method.init_batches=0"),
    ("lora_ga", {"gamma": 0.0}, "method.gamma=0.0"),
    ("dora", {"rank": 0}, "method.rank=0"),
    ("galore", {"rank": 0}, "method.rank=0"),
    (
        "galore",
        {"rank": 17},
        r"method.rank=17: layer 'bert.encoder.layer.0.*' is 16 x 16, so the rank must lie in 1..16",
    ),
    ("galore", {"every": 0}, "method.every=0"),
    ("galore", {"scale": 0.0}, "method.scale=0.0"),
    ("galore", {"rest_lr": 0.0}, "method.rest_lr=0.0"),
    ("dct_adamw", {"rank": 0}, "method.rank=0"),
    ("dct_adamw", {"rank": 99}, "method.rank=99: layer"),
    ("dct_adamw", {"every": 0}, "method.every=0"),
    ("trion", {"mu": 1.0}, "method.mu=1.0"),
    ("trion", {"basis": "dct3"}, "method.basis=dct3: .*transform=matmul"),
    ("dion", {"rank": 0}, "method.rank=0"),
    ("dion", {"rank": 99}, "method.rank=99: layer"),
    ("muon_nesterov", {"rank": 0}, "method.rank=0"),
    ("muon_nesterov", {"steps": 0}, "method.steps=0"),
    ("muon_nesterov", {"beta": 1.0}, "method.beta=1.0"),
    ("muon_nesterov", {"oversampling": -1}, "method.oversampling=-1"),
    ("lora", {"target_modules": ["querry"]}, "'querry' matches no layer; did you mean 'query'"),
    ("peft", {"tuner": "adalara"}, "method.tuner=adalara: .*did you mean 'adalora'"),
    ("peft", {"tuner": "prefix_tuning"}, "method.tuner=prefix_tuning: "),
    ("peft", {"options": {"lora_alfa": 3}}, "method.options.lora_alfa: .*did you mean 'lora_alpha'"),
    ("peft", {"options": {"target_modules": "x"}}, "use method.target_modules"),
    ("peft", {"options": {"r": -1}}, "method.tuner=lora: peft refuses"),
    ("peft", {"tuner": "adalora", "options": {"init_r": 4, "target_r": 4}}, "method.options.init_r=4"),
    ("peft", {"tuner": "adalora", "options": {"tinit": 15, "tfinal": 5}}, "less than the 20 steps"),
]


@pytest.mark.parametrize(
    ("name", "options", "message"), WRONG, ids=[f"{n}-{next(iter(o))}-{i}" for i, (n, o, _) in enumerate(WRONG)]
)
def test_bad_options_are_user_errors(name, options, message):
    with pytest.raises(UserError, match=message):
        adapted(name, **options)


def test_lora_trains_as_peft_does():
    """With equal factors at the start: equal logits through training, so differences between runs are the method's."""
    ours, method = adapted("lora")
    theirs, reference = adapted("peft", options={"r": 8, "lora_alpha": 16}, weight_decay=0.1)
    with torch.no_grad():
        for pair in method.pairs(ours):
            layer = theirs.net.get_submodule(pair.name)
            layer.lora_A["default"].weight.copy_(pair.A)
            layer.lora_B["default"].weight.copy_(pair.B)
    a = train(ours, method, method.optimizer(ours), 10)
    b = train(theirs, reference, reference.optimizer(theirs), 10)
    torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-4, atol=1e-5)


def test_adalora_prunes_as_peft_does():
    """Against peft's own loop (loss with its penalty, ``update_and_allocate`` after the step)."""
    from peft import AdaLoraConfig, get_peft_model

    case, total = "peft-adalora", 12
    backbone, method = adapted(case, total=total, lr=1e-2, head_lr=1e-2, weight_decay=0.0)
    names = list(find_targets(tiny_bert().net, ["query", "value"], roles=backbone.roles))
    seed = int(torch.randint(2**62, (1,), generator=torch.Generator().manual_seed(0)))
    reference = tiny_bert()
    torch.manual_seed(seed)
    config = AdaLoraConfig(target_modules=names, init_r=6, target_r=3, tinit=2, tfinal=2, total_step=total)
    model = get_peft_model(reference.net, config).eval()
    for p in reference.net.classifier.parameters():
        p.requires_grad_(True)
    ours, theirs = (
        method.optimizer(backbone),
        torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0),
    )
    train(backbone, method, ours, total)
    for step in range(total):
        batch, labels = batch_of(1000 + step)
        theirs.zero_grad()
        model.base_model(**batch, labels=labels).loss.backward()  # model(...) would leave the penalty out
        theirs.step()
        model.base_model.update_and_allocate(step + 1)
    torch.testing.assert_close(logits(backbone), logits(reference), rtol=1e-4, atol=1e-5)
    ranks = [int((p != 0).sum()) for name, p in backbone.net.named_parameters() if "lora_E" in name]
    assert sum(ranks) == 3 * len(ranks)
    assert len(ranks) == 4
