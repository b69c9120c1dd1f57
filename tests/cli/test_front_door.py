"""The command line: mistakes are one clear line with exit code 2, and nothing heavy is imported to say so."""

from __future__ import annotations

import re

import pytest

from tests.conftest import ROOT, command

MISTAKES = {
    "method=altlorra": ["method=altlorra", "did you mean 'altlora'"],
    "metod=lora": ["metod", "did you mean 'method'"],
    "method.rnak=3": ["method.rnak", "did you mean 'rank'"],
    "+method.rnak=3": ["method.rnak", "did you mean 'rank'"],
    "method.rank=abc": ["method.rank='abc'", "expected int"],
    "method.rank=1.5": ["method.rank=1.5", "expected int"],
    "trainer.max_steps=abc": ["trainer.max_steps='abc'", "integer"],
    "trainer.max_steps=-1": ["trainer.max_steps=-1", "greater than or equal to 0"],
    "trainer.max_stps=1": ["trainer.max_stps", "did you mean 'max_steps'"],
    "trainer.schedule=cosin": ["trainer.schedule='cosin'", "cosine"],
    "trainer.precision=fp8": ["trainer.precision='fp8'", "bf16-mixed"],
    "task.subset=foo": ["task.subset", "foo", "sentiment"],
    "task.subset=[sentiment,domian]": ["domian", "did you mean 'domain'"],
    "task.subset=3": ["task.subset=3"],
    "task.source=cloud": ["task.source='cloud'", "embedded"],
    "task.source=local": ["task.data_dir"],
    "model=bert": ["model=bert", "bert_base"],
    "scale=huge": ["scale=huge", "mini, paper, smoke"],
    "seed=-1": ["seed=-1"],
    "seed=1.5": ["seed=1.5"],
    "+foo=1": ["foo", "no such key"],
    "+sweeps=altlora": ["sweeps=altlora", "altlora_glue"],
    "rerun=maybe": ["rerun='maybe'", "none"],
    "seed": ["seed", "key=value"],
    "method.rank=[1": ["method.rank=[1"],
    "callbacks.checkpoint.every_n_steps=0": ["callbacks.checkpoint.every_n_steps=0", "greater than 0"],
    "logger.every_n_steps=0": ["logger.every_n_steps=0"],
}


@pytest.mark.parametrize("override", MISTAKES)
def test_a_mistake_is_one_line_that_names_it(cli, override: str, tmp_path) -> None:
    result = cli(override, f"paths.root={tmp_path}")
    assert result.code == 2, result
    lines = result.err.strip().splitlines()
    assert len(lines) == 1, result
    assert lines[0].startswith("error: ")
    for words in MISTAKES[override]:
        assert words in lines[0], result
    assert not result.out.strip()
    assert not list(tmp_path.glob("records/*"))


def test_a_mistake_in_a_sweep_is_found_before_any_job_starts(cli, tmp_path) -> None:
    result = cli("-m", "method=head,altlorra", f"paths.root={tmp_path}", "scale=smoke")
    assert result.code == 2, result
    assert "did you mean 'altlora'" in result.err
    assert not (tmp_path / "records").exists()


FORBIDDEN = ("torch", "pytorch_lightning", "transformers", "datasets", "wandb", "torchmetrics", "peft", "matplotlib")
LIGHT = [
    ["run.py", "--help"],
    ["run.py", "--cfg", "job"],
    ["run.py", "method=altlorra"],
    ["run.py", "task=glue", "task.subset=foo"],
    ["run.py", "-sc", "query=bash"],
    ["-m", "lrx", "list", "methods"],
    ["-m", "lrx", "info", "altlora"],
]


@pytest.mark.parametrize("arguments", LIGHT, ids=" ".join)
def test_light_commands_import_nothing_heavy(arguments: list[str]) -> None:
    result = command("-X", "importtime", *arguments, env={"COMP_LINE": "python run.py method=", "COMP_POINT": "21"})
    imported = set(re.findall(r"\|\s+([\w.]+)$", result.err, flags=re.MULTILINE))
    assert len(imported) > 100  # the flag worked
    assert not imported & set(FORBIDDEN)
    assert "Traceback" not in result.err


@pytest.mark.parametrize("arguments", LIGHT[:4] + LIGHT[5:], ids=" ".join)
def test_light_commands_need_little_computing(arguments: list[str]) -> None:
    """Less than a second on a free core. Processor time, not wall time, and the best of eight: other tests run beside
    this one, and where two processors are one core's threads, they slow its computing too, by half.
    """
    import resource

    used = []
    for _ in range(8):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command(*arguments)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if used[-1] < 1.5:
            break
    assert min(used) < 1.5


def test_help_lists_every_group_and_option() -> None:
    result = command("run.py", "--help")
    assert result.code == 0
    for group in ("method", "model", "task", "scale", "trainer", "logger", "callbacks"):
        for option in (ROOT / "conf" / group).glob("*.yaml"):
            assert re.search(rf"\b{group}:.*\b{option.stem}\b", result.out), (group, option.stem)


def test_tab_completion_offers_the_methods() -> None:
    line = "python run.py method=alt"
    result = command("run.py", "-sc", "query=bash", env={"COMP_LINE": line, "COMP_POINT": str(len(line))})
    assert "method=altlora" in result.out.split()
