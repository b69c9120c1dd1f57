"""The passport: complete for every method, and its counts are those of real runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lrx import config as lrx_config
from lrx import desk, passport, registry
from lrx.__main__ import main
from lrx.results.record import read
from tests.conftest import FOR_POLICIES, Result, command, each
from tests.results.fakes import FakeJob, all_records, record_of

METHODS = registry.names("methods")
ON_TEXT = [name for name in METHODS if name not in FOR_POLICIES]


@pytest.fixture
def info(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    def call(*arguments: str) -> Result:
        capsys.readouterr()
        code = main(["info", *arguments, "--root", str(tmp_path)])
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return call


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_what_it_must(name: str) -> None:
    sections = {section.title: section.lines for section in passport.doc_sections(registry.find("methods", name).doc)}
    assert {"what it does", "what is trained", "departures from the official code and the paper", "cost"} <= set(
        sections
    )
    assert sections["departures from the official code and the paper"][0].startswith("Departure")
    if name not in ("head", "none", "peft"):
        assert any(line.startswith("    ") and "=" in line for line in sections["what it does"]), "no equations"
    whole = "\n".join(line for lines in sections.values() for line in lines)
    assert sorted(whole.split()) == sorted(registry.find("methods", name).doc.split())  # nothing is lost


def test_sections_of_a_docstring() -> None:
    doc = (
        "Title.\n\n    y = x\n\nTrained: A.\nDepartures from code (x.org): no.\nA second line.\nCost per m: 1.\n\nMore"
    )
    found = [(section.title, section.lines) for section in passport.doc_sections(doc)]
    assert found == [
        ("what it does", ["Title.", "", "    y = x"]),
        ("what is trained", ["Trained: A."]),
        (
            "departures from the official code and the paper",
            ["Departures from code (x.org): no.", "A second line."],
        ),
        ("cost", ["Cost per m: 1."]),
        ("besides", ["More"]),
    ]


def counted(*overrides: str):
    from lrx.counts import count

    return count(lrx_config.settings_of(lrx_config.compose(overrides)))


def agree(root: Path, *overrides: str) -> None:
    """The counts for these overrides are what the one record below ``root`` holds."""
    (path,) = root.glob("records/*.json")
    cost = read(path).cost
    found = counted(*overrides)
    assert max(one.trainable for one in found) == cost["trainable_parameters"]
    assert max(one.adapter for one in found) == cost["adapter_parameters"]
    assert max(one.state_bytes for one in found) == cost["optimizer_state_bytes"]


@pytest.mark.parametrize("name", each(ON_TEXT))
def test_counts_are_those_of_a_run(cli, smoke, tmp_path, name: str) -> None:
    assert cli(f"method={name}", *smoke, "trainer.max_steps=2").code == 0
    agree(tmp_path, f"method={name}", *smoke)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["method=altlora_plus", "model=tiny_llama", "method.target_modules=all-linear", "method.rank=3"],
        ["method=lora_pro", "model=tiny_t5"],
        ["method=peft", "method.tuner=dora"],
        ["method=peft", "method.tuner=ia3", "method.target_modules=[key,value,mlp_out]"],
    ],
)
def test_counts_of_other_models_and_tuners(cli, smoke, tmp_path, overrides: list[str]) -> None:
    assert cli(*overrides, *smoke, "trainer.max_steps=2").code == 0
    agree(tmp_path, *overrides, *smoke)


@pytest.mark.slow
@pytest.mark.parametrize("name", each(ON_TEXT))
def test_counts_are_those_of_a_run_of_minilm(cli, tmp_path, name: str) -> None:
    few = ["trainer.max_steps=2", "trainer.evaluations=0", "task.train_limit=64", "task.eval_limit=32"]
    run = [f"method={name}", "task.subset=sentiment", "logger=none", f"paths.root={tmp_path}"]
    assert cli(*run, *few).code == 0
    agree(tmp_path, *run)


@pytest.mark.parametrize(
    ("model", "parameters"),
    [  # with a head of two classes, as their authors' libraries count them
        ("minilm", 22_713_986),
        ("bert_base", 109_483_778),
        ("roberta_base", 124_647_170),
        ("roberta_large", 355_361_794),
        ("deberta_v3_base", 184_423_682),
        ("t5_base", 222_903_552),
    ],
)
def test_a_model_is_counted_without_its_weights(model: str, parameters: int) -> None:
    (found,) = counted("method=full", f"model={model}", "task.subset=sentiment")
    assert found.total == found.trainable == parameters
    assert found.state == 2 * parameters
    assert {"query", "key", "value", "output", "mlp_in", "mlp_out"} <= {role for role, _, _ in found.matrices}


def test_every_hub_model_has_its_shapes() -> None:
    from lrx.models.shapes import HUB
    from lrx.results.sweep import load_yaml

    hub = [load_yaml(choice.path) for choice in desk.choices("models").values() if choice.path]
    # timm knows the shapes of its architectures by itself
    assert {m["path"] for m in hub if m.get("weights") == "hub" and m["family"] != "timm"} == set(HUB)


def test_a_method_with_records(info, tmp_path) -> None:
    for record in all_records():
        record.save(tmp_path)
    record_of(FakeJob("altlora", 7), "diverged").save(tmp_path)
    shown = info("altlora")
    assert shown.code == 0, shown
    assert "mini: glue (sentiment+intensity+domain), minilm, altlora: 3 finished (seeds 0, 1, 2)" in shown.out
    assert "1 diverged" in shown.out
    assert "measured: trained 148,610, 1,188,880 bytes of optimizer state" in shown.out
    assert "altlora_glue: AltLoRA is better than Head only" in shown.out
    assert "mini, glue: lr " in shown.out  # the tuned values


def test_a_method_without_records(info) -> None:
    shown = info("altlora_plus")
    assert "no record of it below" in shown.out
    assert "altlora_glue: better(altlora_plus, lora, avg): not enough evidence, no finished run" in shown.out
    assert "--counts" in shown.out


def test_counts_on_the_command_line(info) -> None:
    shown = info("lora", "model=tiny_bert", "scale=smoke", "method.rank=4")
    assert shown.code == 0, shown
    assert "adapted: 2 query 32 x 32, 2 value 32 x 32" in shown.out
    assert "sentiment: trained 1,090 = 1,024 + 66 in the head" in shown.out
    assert "optimizer state 2,180 numbers, 8,720 bytes" in shown.out
    model = info("minilm", "--counts")
    assert "parameters of the model with its head: 22,713,986" in model.out
    assert "6 mlp_in 1536 x 384" in model.out
    assert "1 finished" not in model.out
    assert "domain" not in info("t5_base", "task.subset=[sentiment,intensity]").out


def test_a_task(info) -> None:
    shown = info("glue")
    assert "rte (local, hub): 2 classes; accuracy; reported validation; train 2,490" in shown.out
    assert "mnli (local, hub): 3 classes; accuracy; reported validation_matched+validation_mismatched" in shown.out
    assert "sentiment (embedded): 2 classes" in shown.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["altlorra"], "did you mean 'altlora'"),
        (["lora", "roberta_base"], "model=minilm"),
        (["lora", "model=robertaa_base"], "did you mean 'roberta_base'"),
        (["lora", "method.rnk=3"], "did you mean 'rank'"),
        (["lora", "model=roberta_base", "model.path=some/other"], "model.weights=local"),
        (["tiny_vit", "--counts"], "images"),
    ],
)
def test_mistakes_are_one_line(info, arguments: list[str], message: str) -> None:
    shown = info(*arguments)
    assert shown.code == 2, shown
    assert message in shown.err
    assert len(shown.err.strip().splitlines()) == 1, shown


def test_nothing_is_padded_when_piped(capsys: pytest.CaptureFixture[str], info) -> None:
    for arguments in (["list"], ["list", "methods"]):
        capsys.readouterr()
        assert main(arguments) == 0
        out = capsys.readouterr().out
        assert out.count("\n") > 5
        assert not [line for line in out.splitlines() if line != line.rstrip()]
    assert not [line for line in info("altlora").out.splitlines() if line != line.rstrip()]


def test_without_counts_it_is_quick_and_free_of_torch(tmp_path: Path) -> None:
    code = (
        "import sys, time, json; t = time.process_time(); from lrx.__main__ import main; main(sys.argv[1:]);"
        "print(json.dumps([time.process_time() - t, 'torch' in sys.modules]))"
    )
    shown = command("-c", code, "info", "altlora", "--root", str(tmp_path))
    seconds, torch_there = json.loads(shown.out.strip().splitlines()[-1])
    assert not torch_there
    assert seconds < 1
