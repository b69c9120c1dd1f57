"""Tuning: equal numbers of trials, resumable, and winners that later runs compose."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import yaml

from lrx import config as lrx_config
from lrx.__main__ import main
from lrx.errors import Busy, UserError
from lrx.explain import explain
from lrx.results.sweep import load
from lrx.tuning import caption, command, journal, mismatch
from lrx.tuning.journal import opened, published, read
from lrx.tuning.targets import targets
from tests.tuning.fakes import SWEEP, Runner, best_at, record_of, tune


def folder(root: Path) -> Path:
    return root / "tuning" / SWEEP


def trials(root: Path) -> dict[str, list[journal.Trial]]:
    """The trials on disk, by row."""
    found = read(folder(root))
    assert found
    return {study.facts.row: study.trials() for study in found.studies()}


def test_every_method_gets_the_same_number_of_trials(tmp_path: Path) -> None:
    runner = Runner(best_at(1e-3))
    tune(tmp_path, runner, "budget=3")
    found = trials(tmp_path)
    assert {row: len(each) for row, each in found.items()} == dict.fromkeys(
        ("full", "head", "lora", "altlora", "altlora_plus"), 3
    )
    assert len(runner.runs) == 15
    assert {settings.seed for settings in runner.runs} == {100}
    assert all(settings.trial for settings in runner.runs)
    order = [settings.method["name"] for settings in runner.runs]
    assert order[:5] == order[5:10] == order[10:]  # in turns: what is cut short is even, too


def test_the_budget_is_a_total(tmp_path: Path) -> None:
    runner = Runner(best_at(1e-3))
    tune(tmp_path, runner, "budget=2", "method=lora")
    tune(tmp_path, runner, "budget=2", "method=lora")
    assert len(runner.runs) == 2
    tune(tmp_path, runner, "budget=5", "method=lora")
    assert len(runner.runs) == 5
    at_once = Runner(best_at(1e-3))
    tune(tmp_path / "other", at_once, "budget=5", "method=lora")
    assert [settings.method["lr"] for settings in at_once.runs] == [settings.method["lr"] for settings in runner.runs]


def test_more_trials_of_an_earlier_budget_are_no_advantage(tmp_path: Path) -> None:
    rates = [point.point["method.lr"] for point in _five(tmp_path)]
    text = tune(tmp_path, Runner(best_at(rates[4])), "budget=2", "method=lora")
    assert f"method.lr={rates[4]:g}" not in text.split("wrote")[-1]
    tuned = yaml.safe_load((tmp_path / "tuned/smoke/glue/lora.yaml").read_text())
    assert tuned["method"]["lr"] in rates[:2]
    assert tuned["tuned"]["trials"] == 2


def _five(root: Path) -> list[journal.Trial]:
    tune(root, Runner(best_at(1e-3)), "budget=5", "method=lora")
    return trials(root)["lora"]


def test_trials_left_running_by_a_kill_are_taken_up(tmp_path: Path) -> None:
    """As after a kill: trials are asked in the journal and nothing is told."""
    (target,) = targets(load(SWEEP), ["lora"], ["scale=smoke"], folder(tmp_path))
    left = [{"method.lr": 0.02}, {"method.lr": 0.07}]
    with opened(folder(tmp_path)) as store:
        study = store.study(target.facts)
        for point in left:
            study.ask(target.space, point, target.run_ids(point))
        with (folder(tmp_path) / "journal.log").open("ab") as stream:
            stream.write(b'{"op_code": 4, "worker')  # a line that the kill cut short
    assert [trial.outcome for trial in trials(tmp_path)["lora"]] == ["open", "open"]
    runner = Runner(best_at(0.02))
    tune(tmp_path, runner, "budget=3", "method=lora")
    assert [settings.method["lr"] for settings in runner.runs][:2] == [0.02, 0.07]
    assert len(runner.runs) == 3
    assert [trial.outcome for trial in trials(tmp_path)["lora"]] == ["finished"] * 3


def test_a_kill_between_two_lines_of_asking(tmp_path: Path) -> None:
    """The trial is then enqueued and not yet begun; its values are known."""
    (target,) = targets(load(SWEEP), ["lora"], ["scale=smoke"], folder(tmp_path))
    with opened(folder(tmp_path)) as store:
        store.study(target.facts).ask(target.space, {"method.lr": 0.02}, target.run_ids({"method.lr": 0.02}))
    log = folder(tmp_path) / "journal.log"
    lines = log.read_bytes().splitlines(keepends=True)
    created = next(i for i, line in enumerate(lines) if b"fixed_params" in line)
    log.write_bytes(b"".join(lines[: created + 1]))
    runner = Runner(best_at(0.02))
    tune(tmp_path, runner, "budget=1", "method=lora")
    assert [settings.method["lr"] for settings in runner.runs] == [0.02]
    assert [trial.outcome for trial in trials(tmp_path)["lora"]] == ["finished"]


def test_a_signal_keeps_what_is_done(tmp_path: Path) -> None:
    text = tune(tmp_path, Runner(best_at(1e-3), stop_after=4), "budget=2")
    assert "interrupted: 6 trials still open; the same command goes on" in text
    done = [trial for each in trials(tmp_path).values() for trial in each if not trial.is_open]
    assert len(done) == 4
    assert not (tmp_path / "tuned").exists()
    rest = Runner(best_at(1e-3))
    tune(tmp_path, rest, "budget=2")
    assert len(rest.runs) == 6


def test_a_signal_is_the_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Runner(best_at(1e-3), stop_after=1)
    monkeypatch.setattr(command, "_run", runner)
    words = ["tune", SWEEP, "budget=2", "scale=smoke", "method=lora", "--root", str(tmp_path)]
    assert main([*words, "--to", str(tmp_path / "tuned")]) == 128 + 15


def test_failed_diverged_and_nan_trials_count_and_are_kept(tmp_path: Path) -> None:
    rates = [trial.point["method.lr"] for trial in _five(tmp_path / "dry")]
    ends = dict(zip(rates, ["failed", "diverged", math.nan, 0.7, 0.6], strict=True))
    runner = Runner(lambda settings: ends[settings.method["lr"]])  # type: ignore[arg-type, return-value]
    text = tune(tmp_path, runner, "budget=5", "method=lora")
    outcomes = [trial.outcome for trial in trials(tmp_path)["lora"]]
    assert outcomes == ["failed", "diverged", "nan", "finished", "finished"]
    assert "it diverged" in text
    tuned = yaml.safe_load((tmp_path / "tuned/smoke/glue/lora.yaml").read_text())
    assert tuned["method"]["lr"] == rates[3]
    assert tuned["tuned"]["trials"] == 5
    assert "# tuned: method.lr=" in (tmp_path / "tuned/smoke/glue/lora.yaml").read_text()
    again = Runner(best_at(1e-3))
    tune(tmp_path, again, "budget=5", "method=lora", "rerun=failed")
    assert [settings.method["lr"] for settings in again.runs] == [rates[0]]  # what diverged would do so again
    assert [trial.point["method.lr"] for trial in trials(tmp_path)["lora"]] == rates
    assert [trial.outcome for trial in trials(tmp_path)["lora"]] == [
        "finished",
        "diverged",
        "nan",
        "finished",
        "finished",
    ]


def test_a_trial_without_a_record_stays_open(tmp_path: Path) -> None:
    class Nothing(Runner):
        def __call__(self, lists, jobs):  # type: ignore[no-untyped-def]
            outcome = super().__call__([], jobs)
            outcome.failed.append(("x", "the disk is full"))
            return outcome

    text = tune(tmp_path, Nothing(best_at(1e-3)), "budget=2", "method=lora")
    assert "2 trials could not be run, still open: the disk is full" in text
    assert not (tmp_path / "tuned").exists()


def test_when_no_trial_finishes_nothing_is_written(tmp_path: Path) -> None:
    text = tune(tmp_path, Runner(lambda settings: "diverged"), "budget=2", "method=lora")
    assert "lora: no trial finished; nothing is written" in text
    assert not (tmp_path / "tuned").exists()


def test_winners_keep_other_values_and_comments_and_say_where_they_come_from(tmp_path: Path) -> None:
    file = tmp_path / "tuned/smoke/glue/lora.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("# @package _global_\n# By hand.\nmethod: {lr: 1.0, rank: 4}\ntrainer: {clip: 2.0}\n")
    for _ in range(2):  # the second time, its own comments are replaced
        tune(tmp_path, Runner(best_at(1e-2)), "budget=3", "method=lora")
    text = file.read_text()
    content = yaml.safe_load(text)
    assert content["method"]["rank"] == 4
    assert content["trainer"] == {"clip": 2.0}
    assert text.startswith("# @package _global_\n# By hand.\n")
    assert text.count(": score of each trial") == 1
    assert content["tuned"] == {
        "sweep": SWEEP, "model": "tiny_bert", "source": "embedded", "values": {"method.lr": content["method"]["lr"]},
        "trials": 3, "seed": 100, "command": f"python -m lrx tune {SWEEP} budget=3 method=lora scale=smoke",
        "metric": "mean of sentiment accuracy, intensity pearson on the selection split, last step",
        "score": pytest.approx(0.8 - 0.1 * abs(math.log10(content["method"]["lr"] / 1e-2)), abs=1e-6),
        "started_from": f"method.lr={trials(tmp_path)['lora'][0].point['method.lr']:g} (the configuration before)",
    }  # fmt: skip


def test_a_later_run_composes_the_winner(tmp_path: Path) -> None:
    """No file of the project is in its way: head has no tuned values at this scale."""
    tune(tmp_path, Runner(best_at(1e-2)), "budget=2", "method=head")
    search = f"hydra.searchpath=[file://{tmp_path}]"
    settings = lrx_config.settings_of(lrx_config.compose([search, "scale=smoke", "method=head"]))
    assert settings.tuned is not None
    assert settings.method["lr"] == settings.tuned.values["method.lr"]
    config = settings.model_dump(mode="json")
    assert mismatch(config) is None
    bare = lrx_config.settings_of(
        lrx_config.compose(["scale=smoke", "method=head", f"method.lr={config['method']['lr']}"])
    )
    assert bare.tuned is None
    assert lrx_config.fingerprint(settings) == lrx_config.fingerprint(bare)  # where a value comes from changes nothing
    other = lrx_config.settings_of(lrx_config.compose([search, "scale=smoke", "method=head", "model=tiny_llama"]))
    line = mismatch(other.model_dump(mode="json"))
    assert line is not None
    assert line.startswith(
        f"method.lr={config['method']['lr']:g} was tuned for tiny_bert on embedded data, not for tiny_"
    )
    own = lrx_config.compose([search, "scale=smoke", "method=head", "model=tiny_llama", "method.lr=0.5"])
    assert mismatch(lrx_config.settings_of(own).model_dump(mode="json")) is None  # a value of one's own
    records = [record_of(settings, 0.8), record_of(dataclasses_seed(settings, 1), 0.8)]
    text = caption(records)
    assert text.startswith("method.lr tuned with 2 trials for each method (python -m lrx tune altlora_glue budget=2")
    assert ": head. The first trial was of the value before the round" in text
    assert "the configuration before)" in text
    assert "Trials score the last step; one seed and the selection items do not tell neighbouring values apart." in text
    for record in records:
        record.parts["sentiment"].sizes["select"] = 500
    assert "one seed and 500 selection items or fewer do not tell" in caption(records)
    assert caption([record_of(bare, 0.8)]) == ""
    assert caption([*records, dataclasses.replace(record_of(bare, 0.8), method="lora")]).endswith("number: lora.")


def dataclasses_seed(settings, seed: int):  # type: ignore[no-untyped-def]
    return settings.model_copy(update={"seed": seed})


def test_dry_run_prints_and_writes_nothing(tmp_path: Path) -> None:
    text = tune(tmp_path, Runner(best_at(1e-2)), "budget=2", "method=head", dry_run=True)
    assert "(not written)" in text
    assert "tuned:\n  sweep: altlora_glue" in text
    assert not (tmp_path / "tuned").exists()


def test_a_winner_at_the_edge_is_warned_about_unless_what_lies_beyond_failed(tmp_path: Path) -> None:
    text = tune(tmp_path, Runner(best_at(1e3)), "budget=3", "method=lora")
    assert "warning: lora: method.lr=" in text
    assert "is the largest value tried (space 0.0001 to 0.1)" in text
    assert "largest value tried" in (tmp_path / "tuned/smoke/glue/lora.yaml").read_text()
    largest = max(trial.point["method.lr"] for trial in trials(tmp_path)["lora"])
    failing = Runner(lambda s: "diverged" if s.method["lr"] == largest else best_at(1e3)(s))
    assert "largest" not in tune(tmp_path / "other", failing, "budget=3", "method=lora")


def test_unequal_budgets_are_warned_about(tmp_path: Path) -> None:
    tune(tmp_path, Runner(best_at(1e-3)), "budget=2", "method=lora")
    assert "warning" not in tune(tmp_path, Runner(best_at(1e-2)), "budget=2", "method=lora,head").split("wrote")[-1]
    text = tune(tmp_path, Runner(best_at(1e-3)), "budget=4", "method=head")
    assert "different numbers of trials (lora 2, head 4)" in text


def test_other_settings_are_other_studies(tmp_path: Path) -> None:
    tune(tmp_path, Runner(best_at(1e-3)), "budget=2", "method=lora")
    other = Runner(best_at(1e-3))
    tune(tmp_path, other, "budget=2", "method=lora", "trainer.max_steps=4")
    assert len(other.runs) == 2
    found = read(folder(tmp_path))
    assert found
    assert len(found.studies()) == 2


def test_trials_json_equals_the_journal(tmp_path: Path) -> None:
    _five(tmp_path)
    (study,) = published(folder(tmp_path) / "trials.json")["studies"]
    assert study["trials"] == trials(tmp_path)["lora"]
    assert study["row"] == "lora"
    assert json.loads((folder(tmp_path) / "trials.json").read_text())["studies"][0]["space"] == {
        "method.lr": {"low": 1e-4, "high": 1e-1, "log": True}
    }


def test_show_runs_nothing(tmp_path: Path) -> None:
    _five(tmp_path)
    runner = Runner(best_at(1e-3))
    text = tune(tmp_path, runner, show_only=True)
    assert not runner.runs
    assert text.count("finished") == 0
    assert " best" in text
    assert len([line for line in text.splitlines() if "sentiment accuracy" in line and "score:" not in line]) == 5


def test_two_processes_do_not_tune_at_once(tmp_path: Path) -> None:
    with opened(folder(tmp_path)), pytest.raises(Busy, match="another process is tuning this sweep"):
        tune(tmp_path, Runner(best_at(1e-3)), "budget=2", "method=lora")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["budget=0"], "budget=0: expected a whole number, at least 1"),
        (["budget=-3"], "budget=-3: expected"),
        (["budget=many"], "budget=many: expected"),
        (["jobs=0", "budget=1"], "jobs=0: expected"),
        (["jobs=2"], "budget=N is missing"),
        (["budget=1", "method=lorra"], "did you mean 'lora'?"),
        (["budget=1", "seed=3"], "seed=3: tuning sets seed itself"),
        (["budget=1", "trial=false"], "tuning sets trial itself"),
        (["budget=1", "paths.root=x"], "tuning sets paths.root itself"),
        (["budget=1", "method=lora", "method.lr=1e-3"], "method.lr=1e-3: altlora_glue tunes method.lr of row lora"),
        (["budget=1", "method.lrr=1"], "did you mean 'lr'?"),
        (["budget=1", "trainer.evaluations=0"], "tuning needs the selection score of the last step"),
        (["budget=1", "rerun=all"], "rerun=all: expected rerun=failed"),
        (["budget=1", "lora"], "lora: expected KEY=VALUE"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path: Path, words: list[str], complaint: str) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - Hydra's own errors too, which the command line explains
        tune(tmp_path, Runner(best_at(1e-3)), *words)
    line = explain(caught.value)
    assert line
    assert complaint in line
    assert "\n" not in line
    assert not list(tmp_path.iterdir())


def _with_tune(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    """The sweep with another section ``tune``."""
    loaded = load(SWEEP)
    assert loaded.tune is not None
    raw = {**loaded.tune.model_dump(), **changes}
    monkeypatch.setattr(command, "load", lambda name: loaded.model_copy(update={"tune": type(loaded.tune)(**raw)}))


def test_a_space_of_an_unknown_key_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _with_tune(monkeypatch, default={"method.lrr": {"low": 1, "high": 2}})
    with pytest.raises(UserError, match=r"tuning row full: method\.lrr: no such key; did you mean 'lr'\?"):
        tune(tmp_path, Runner(best_at(1e-3)), "budget=1")


def test_the_table_s_seeds_are_not_tuned_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _with_tune(monkeypatch, seed=[100, 1])
    with pytest.raises(UserError, match=r"sweep\.tune\.seed=1 is a seed of the table"):
        tune(tmp_path, Runner(best_at(1e-3)), "budget=1")


def test_several_seeds_are_averaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _with_tune(monkeypatch, seed=[100, 101])
    runner = Runner(lambda settings: 0.8 if settings.seed == 100 else 0.6)
    tune(tmp_path, runner, "budget=2", "method=lora")
    assert [trial.score for trial in trials(tmp_path)["lora"]] == pytest.approx([0.7, 0.7])
    assert len(runner.runs) == 4


def test_a_damaged_journal_is_one_line(tmp_path: Path) -> None:
    _five(tmp_path)
    log = folder(tmp_path) / "journal.log"
    log.write_bytes(log.read_bytes()[:200] + b"\n" + log.read_bytes()[200:])
    with pytest.raises(UserError, match=r"journal\.log is damaged"):
        tune(tmp_path, Runner(best_at(1e-3)), "budget=5", "method=lora")
