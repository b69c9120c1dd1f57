"""The lens sees what happened, in every kind of method, and changes nothing of it."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lrx import config as lrx_config
from lrx import registry
from lrx.callbacks.costs import Costs
from lrx.callbacks.lens import Lens, look_at, response
from lrx.errors import UserError
from lrx.experiment import build_suite
from lrx.methods.base import Method
from lrx.results.record import read
from lrx.training import assemble
from tests.conftest import FOR_POLICIES, each
from tests.faults.forked import logged, run, small

LENS = ["callbacks=lens", "callbacks.lens.every=3"]
CASES = {
    "lora": ["method=lora"],
    "altlora": ["method=altlora"],
    "full": ["method=full"],
    "dora": ["method=peft", "method.tuner=dora"],
}


def slow(*cases: str) -> list:
    return [pytest.param(case, marks=pytest.mark.slow) for case in cases]


def lines(root: Path) -> list[dict]:
    (path,) = root.glob("runs/*/sentiment/lens.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def comparable(found: list[dict]) -> list[dict]:
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


def built(*overrides: str):
    """(backbone, method) of a run before it is trained."""
    settings = lrx_config.settings_of(lrx_config.compose(overrides))
    (task,) = build_suite(settings).parts()
    return assemble(task, settings)


@pytest.mark.parametrize("case", ["lora", "full", *slow("altlora", "dora")])
def test_the_run_is_the_same_to_the_last_bit(cli, smoke, tmp_path, case: str) -> None:
    plain = [*smoke[:-1], f"paths.root={tmp_path / 'plain'}"]
    seen = [*smoke[:-1], f"paths.root={tmp_path / 'seen'}"]
    assert cli(*CASES[case], *plain).code == 0
    shown = cli(*CASES[case], *seen, *LENS)
    assert shown.code == 0, shown
    assert "lens: 4 recordings of 4 matrices" in shown.out
    (a,), (b,) = ([*(tmp_path / name).glob("records/*.json")] for name in ("plain", "seen"))
    assert a.name == b.name  # the lens is no part of the identity
    one, other = read(a), read(b)
    assert {k: (p.metrics, p.last) for k, p in one.parts.items()} == {
        k: (p.metrics, p.last) for k, p in other.parts.items()
    }
    weights = [next((tmp_path / name).glob("runs/*/*/adapter.safetensors")).read_bytes() for name in ("plain", "seen")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("case", ["altlora", "dora", *slow("lora", "full")])
def test_the_last_line_is_the_svd_of_what_the_run_did(cli, smoke, tmp_path, case: str) -> None:
    """Against the full matrices, rebuilt from the stored weights; the reported weights are those of the last step."""
    overrides = [*CASES[case], *smoke, "trainer.select=last"]
    assert cli(*overrides, *LENS).code == 0
    found = lines(tmp_path)
    assert sorted({line["step"] for line in found}) == [0, 3, 6, 8]
    backbone, method = built(*overrides)
    names = [line["name"] for line in found if line["step"] == 8]
    assert len(names) == 4
    effective = {name: lambda name=name: matrix_of(backbone.net.get_submodule(name)) for name in names}
    start = {name: matrix() for name, matrix in effective.items()}
    (stored,) = tmp_path.glob("runs/*/sentiment/adapter.safetensors")
    method.load_adapter(backbone, load_file(stored))
    tolerance = 1e-12 if case in ("lora", "altlora") else 1e-5  # the others act in float32
    for line in (line for line in found if line["step"] == 8):
        now = effective[line["name"]]()
        values = torch.linalg.svdvals(now - start[line["name"]])
        weight = torch.linalg.svdvals(now)
        assert line["shape"] == list(now.shape)
        assert line["update"] == pytest.approx(values[: len(line["update"])].tolist(), abs=tolerance)
        assert line["weight"] == pytest.approx(weight[:16].tolist(), abs=tolerance)
        p = values / values.sum()
        assert line["effective_rank"] == pytest.approx(float(torch.exp(torch.special.entr(p).sum())), rel=1e-3)
        assert line["stable_rank"] == pytest.approx(float((values**2).sum() / values[0] ** 2), rel=1e-3)
        assert len(line["angles_start"]) == len(line["angles_previous"]) == 8
        assert line["angles_start"][-1] > line["angles_start"][0] >= 0
        assert line["seconds"] > 0
    zero = [line for line in found if line["step"] == 0]
    assert all(line["effective_rank"] == line["stable_rank"] == 0 for line in zero)
    assert all(line["angles_start"] == line["angles_previous"] == [] for line in zero)
    assert all(line["weight"] == [] for line in found if line["step"] in (3, 6))


def matrix_of(layer: nn.Module) -> torch.Tensor:
    """W0 + dW of a layer in float64: by the factors, or by how it acts."""
    if hasattr(layer, "scaling") and hasattr(layer, "base"):
        return layer.base.weight.double() + layer.scaling * (layer.B.double() @ layer.A.double()).detach()
    return response(layer).double()


@pytest.mark.parametrize("case", ["full", *slow("altlora")])
def test_a_killed_run_neither_repeats_nor_loses_lines(case: str, tmp_path: Path) -> None:
    overrides = small(case, *LENS, "trainer.max_steps=14", "callbacks.checkpoint.every_n_steps=4")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run(overrides, whole).code == 0
    assert run(overrides, broken, when=logged(broken, 10)).code == -signal.SIGKILL
    (path,) = broken.glob("runs/*/sentiment/lens.jsonl")
    with path.open("a") as stream:
        stream.write('{"step": 9, "name": "torn')
    again = run(overrides, broken)
    assert again.code == 0, again
    assert "going on from step-" in again.out
    found = comparable(lines(broken))
    assert [line["step"] for line in found] == [step for step in (0, 3, 6, 9, 12, 14) for _ in range(4)]
    assert found == comparable(lines(whole))


def test_switched_on_in_mid_run_it_starts_there(tmp_path: Path) -> None:
    overrides = small("lora", "trainer.max_steps=14")
    root = tmp_path / "root"
    assert run(overrides, root, when=logged(root, 9)).code == -signal.SIGKILL
    assert run([*overrides, *LENS, "callbacks.lens.weight_every=6"], root).code == 0
    found = lines(root)
    begun = found[0]["step"]
    assert begun in (4, 8, 12)
    assert found[0]["effective_rank"] > 0  # dW against the initial weights, not against those of the checkpoint
    steps = [step for step in (6, 9, 12, 14) if step > begun]
    assert [line["step"] for line in found] == [step for step in (begun, *steps) for _ in range(4)]
    assert {line["step"] for line in found if line["weight"]} == {begun, 14, *(s for s in (6, 12) if s > begun)}


def test_early_stopping_ends_with_a_line(cli, smoke, tmp_path) -> None:
    stopping = ["trainer.patience=1", "trainer.evaluations=8", "method.lr=1e-9"]
    assert cli("method=lora", *smoke, *stopping, "callbacks=lens", "callbacks.lens.every=5").code == 0
    (record,) = tmp_path.glob("records/*.json")
    last = read(record).parts["sentiment"].steps
    assert last < 5
    assert {line["step"] for line in lines(tmp_path) if line["weight"]} == {0, last}


@pytest.mark.parametrize("tuner", ["lora", "dora", "pissa", "ia3", "vera", "oft", "adalora", "loha", "lokr"])
def test_a_tuned_layer_is_read_as_it_merges(tuner: str) -> None:
    options = ["+method.options.init_r=12"] if tuner == "adalora" else []
    backbone, method = built("method=peft", f"method.tuner={tuner}", "scale=smoke", "task.subset=sentiment", *options)
    with torch.no_grad():
        for index, p in enumerate(p for p in backbone.net.parameters() if p.requires_grad):
            noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(index))
            p.add_(0.1 * noise)
    seen = {matrix.name: matrix.weight() for matrix in look_at(method, backbone, None)}
    assert len(seen) == 4
    assert backbone.training
    method.merge(backbone)
    for name, weight in seen.items():
        assert torch.allclose(weight, backbone.net.get_submodule(name).weight, atol=1e-5), name


def test_which_matrices() -> None:
    full, method = built("method=full", "scale=smoke", "task.subset=sentiment")
    assert [matrix.name.rpartition(".")[2] for matrix in look_at(method, full, None)] == ["query", "value"] * 2
    assert len(look_at(method, full, "all-linear")) == 13  # the pooler too, the head not
    lora, method = built("method=lora", "scale=smoke", "task.subset=sentiment", "method.target_modules=all-linear")
    assert len(look_at(method, lora, None)) == len(look_at(method, lora, "all-linear")) == 13
    assert {matrix.name.rpartition(".")[2] for matrix in look_at(method, lora, ["key"])} == {"key"}
    decoder, method = built("method=full", "scale=smoke", "task.subset=sentiment", "model=tiny_llama")
    assert len(look_at(method, decoder, None)) == 4


def test_what_is_not_finite_leaves_no_line(tmp_path: Path) -> None:
    backbone, method = built("method=lora", "scale=smoke", "task.subset=sentiment")
    lens = Lens(tmp_path / "x", Costs(), every=1, weight_every=None, top=2, rank=2, target_modules=None)
    lens._matrices = look_at(method, backbone, None)
    with torch.no_grad():
        method.pairs(backbone)[0].B[0, 0] = float("nan")
    lens._record(1, weight=False)
    assert [json.loads(line)["name"] for line in (tmp_path / "x").read_text().splitlines()] == [
        pair.name for pair in method.pairs(backbone)[1:]
    ]


def test_its_time_is_left_out(tmp_path: Path, monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    costs = Costs()
    lens = Lens(tmp_path / "x", costs, every=1, weight_every=None, top=2, rank=2, target_modules=None)
    lens._matrices = [object()]  # type: ignore[list-item]

    def slow(*_: object) -> None:
        now[0] += 7

    monkeypatch.setattr(lens, "_line", slow)
    now[0] += 1
    lens._record(1, weight=True)
    assert (costs.elapsed(), lens.seconds) == (1.0, 7.0)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["method=head"], ["callbacks=lens", "method=head"]),
        (["callbacks.lens.target_modules=[qurey]", "method=full"], ["qurey", "did you mean 'query'"]),
        (["callbacks.lens.target_modules=[key]"], ["callbacks.lens.target_modules", "method=lora"]),
        (["callbacks.lens.every=0"], ["callbacks.lens.every=0"]),
        (["+callbacks.lens.evry=3"], ["callbacks.lens.evry", "did you mean 'every'"]),
        (["callbacks.lens.rank=null"], ["callbacks.lens.rank"]),
        (["trainer=fsdp"], ["fsdp", "no lens"]),
    ],
)
def test_mistakes_are_one_line(cli, smoke, tmp_path, overrides: list[str], words: list[str]) -> None:
    shown = cli("method=lora", *smoke, "callbacks=lens", *overrides)
    assert shown.code == 2, shown
    assert len(shown.err.strip().splitlines()) == 1, shown
    assert all(word in shown.err for word in words), shown
    assert not list(tmp_path.glob("records/*"))


@pytest.mark.parametrize("name", each(sorted({*registry.names("methods")} - {"head", "none", *FOR_POLICIES})))
def test_every_method_is_seen(name: str) -> None:
    """A method that keeps its update in a way of its own would show nothing: it must be one that the lens knows."""
    backbone, method = built(f"method={name}", "scale=smoke", "task.subset=sentiment")
    if name == "lost":  # its layers have an activation inside: they act by no matrix
        with pytest.raises(UserError, match="changes no matrix"):
            look_at(method, backbone, None)
        return
    assert len(look_at(method, backbone, None)) == (13 if method_targets_all(method) else 4)


def method_targets_all(method: Method) -> bool:
    return getattr(method, "target_modules", None) == "all-linear" and not method.trains_base
