"""Whole runs through the command line's entry: every method repeats to the bit, leaves what it should and no more."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT, Result, command

METHODS = sorted(path.stem for path in (ROOT / "conf" / "method").glob("*.yaml"))
MODELS = ["tiny_bert", "tiny_llama", "tiny_t5"]
SMALL = [
    "scale=smoke", "task.subset=sentiment", "logger=none", "trainer.max_steps=2", "task.train_limit=16",
    "task.eval_limit=16", "callbacks.checkpoint.every_n_steps=null", "logger.every_n_steps=1",
]  # fmt: skip
Run = Callable[..., Result]


@pytest.fixture
def run(cli: Callable[..., Result], tmp_path: Path) -> Run:
    """``run(*overrides, root=...)``: a small run, which must succeed unless ``code`` says otherwise."""

    def call(*overrides: str, root: Path = tmp_path, code: int = 0) -> Result:
        result = cli(
            *[o for o in overrides if o == "-m"], *SMALL, f"paths.root={root}", *[o for o in overrides if o != "-m"]
        )
        assert result.code == code, result
        if code:
            assert "Traceback" not in result.err
        return result

    return call


def the_record(root: Path) -> Any:
    from lrx.results.record import read

    (path,) = (root / "records").glob("*.json")
    return read(path)


def part_folder(root: Path, part: str = "sentiment") -> Path:
    (found,) = root.glob(f"runs/*/{part}")
    return found


def weights(root: Path) -> dict[str, torch.Tensor]:
    return load_file(part_folder(root) / "adapter.safetensors")


def log_lines(root: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (part_folder(root) / "metrics.jsonl").read_text().splitlines()]


def numbers(root: Path) -> dict[str, Any]:
    """All that a run computed: what two equal runs must have in common to the last bit."""
    parts = {name: dataclasses.asdict(part) for name, part in the_record(root).parts.items()}
    for part in parts.values():
        part.pop("predictions")  # paths that hold the run id
        part.pop("notes")  # counted where a split is read, which a resumed run may do later
    folder = part_folder(root)
    return {
        "parts": parts,
        "losses": log_lines(root),
        "predictions": (folder / "predictions.test.csv").read_text(),
        "weights": {name: tensor.numpy().tobytes() for name, tensor in weights(root).items()},
    }


def one_line(result: Result, *words: str) -> None:
    lines = result.err.strip().splitlines()
    assert len(lines) == 1, result
    for word in words:
        assert word in lines[0], result


# Repeating.


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_repeats_to_the_bit(run: Run, tmp_path: Path, method: str, model: str) -> None:
    choice = [f"method={method}", f"model={model}"]
    if (method, model) == ("head", "tiny_t5"):
        one_line(run(*choice, code=2), "method=head", "has none")
        assert not list(tmp_path.glob("records/*"))
        return
    run(*choice)
    first = numbers(tmp_path)
    assert first["parts"]["sentiment"]["steps"] == 2
    assert [line["step"] for line in first["losses"] if "train/loss" in line] == [1, 2]
    (part_folder(tmp_path) / "adapter.safetensors").write_bytes(b"")  # nothing of the first run may be taken over
    run(*choice, "rerun=all")
    assert numbers(tmp_path) == first


@pytest.mark.parametrize("method", ["altlora_plus", "peft"])
def test_a_run_does_not_depend_on_what_ran_before_it(run: Run, tmp_path: Path, method: str) -> None:
    """Alone in a process of its own, and last in a sweep behind other methods, models, seeds and precisions."""
    alone = command("run.py", *SMALL, f"method={method}", f"paths.root={tmp_path / 'alone'}")
    assert alone.code == 0, alone
    sweep = tmp_path / "sweep"
    run("-m", f"method=lora_pro,{method}", "model=tiny_llama,tiny_bert", "seed=1", root=tmp_path / "other")
    run("model=tiny_t5", "trainer.precision=bf16-mixed", "method=altlora", root=tmp_path / "other")
    run(f"method={method}", root=sweep)
    assert numbers(sweep) == numbers(tmp_path / "alone")


def test_the_threads_of_one_run_are_not_those_of_the_next(run: Run, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    for name, threads in (("first", "null"), ("own", str(before + 1)), ("next", "null")):
        run("method=head", f"trainer.threads={threads}", root=tmp_path / name)
    found = [the_record(tmp_path / name).environment["threads"] for name in ("first", "own", "next")]
    assert found == [before, before + 1, before]


@dataclasses.dataclass
class Seen:
    """What the training of one run was given."""

    order: list[list[int]] = dataclasses.field(default_factory=list)
    head: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    embedding: torch.Tensor | None = None


def watch(monkeypatch: pytest.MonkeyPatch) -> Seen:
    from lrx.modules.supervised import Supervised

    seen = Seen()
    step = Supervised.training_step

    def watched(self: Supervised, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        net = self.backbone.net
        if not seen.order:
            seen.head = {n: p.detach().clone() for n, p in net.named_parameters() if self.backbone.in_head(n)}
            seen.embedding = net.get_input_embeddings().weight.detach().clone()
        seen.order.append(batch["index"].tolist())
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Supervised, "training_step", watched)
    return seen


def test_methods_are_paired_and_seeds_are_not(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal seeds: the same batches, head and backbone for every method. Another seed: others."""

    def observe(*overrides: str) -> Seen:
        with monkeypatch.context() as patch:
            seen = watch(patch)
            run(*overrides)
        assert len(seen.order) == 2
        assert seen.head
        return seen

    def same_head(a: Seen, b: Seen) -> bool:
        return a.head.keys() == b.head.keys() and all(torch.equal(a.head[key], b.head[key]) for key in a.head)

    reference = observe("method=lora")
    for method in METHODS:
        seen = observe(f"method={method}", "rerun=all")
        assert seen.order == reference.order, method
        assert same_head(seen, reference), method
        assert torch.equal(seen.embedding, reference.embedding), method
    other = observe("method=lora", "seed=1")
    assert other.order != reference.order
    assert not same_head(other, reference)
    longer = observe("method=lora", "method.rank=2", "method.dropout=0.3")  # draws other random numbers
    assert longer.order == reference.order
    assert same_head(longer, reference)


def test_seeds_give_different_numbers(run: Run, tmp_path: Path) -> None:
    for seed in (0, 1):
        run("method=lora", f"seed={seed}", root=tmp_path / str(seed))
    first, second = numbers(tmp_path / "0"), numbers(tmp_path / "1")
    assert first["losses"] != second["losses"]
    assert first["weights"] != second["weights"]
    assert the_record(tmp_path / "0").fingerprint != the_record(tmp_path / "1").fingerprint


# Training options.


def test_bf16_keeps_the_factors_in_float32(run: Run, tmp_path: Path) -> None:
    for precision in ("32-true", "bf16-mixed"):
        run("method=altlora", f"trainer.precision={precision}", root=tmp_path / precision)
    half, whole = tmp_path / "bf16-mixed", tmp_path / "32-true"
    assert log_lines(half)[0]["train/loss"] != log_lines(whole)[0]["train/loss"]  # it did run in bfloat16
    assert log_lines(half)[0]["train/loss"] == pytest.approx(log_lines(whole)[0]["train/loss"], abs=0.02)
    assert {tensor.dtype for tensor in weights(half).values()} == {torch.float32}
    factors = [t for name, t in weights(half).items() if name.endswith(".A")]
    assert factors
    assert all((t != t.bfloat16().float()).any() for t in factors)  # and were never rounded to it
    assert (
        "every metric equals the record"
        in run("method=altlora", "trainer.precision=bf16-mixed", "mode=eval", root=half).out
    )


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_t5"])
def test_accumulation_equals_the_larger_batch(run: Run, tmp_path: Path, model: str) -> None:
    """Two batches of 4 and one of 8: the same step. Llama has no dropout; T5's is switched off."""
    quiet = ["+model.config.dropout_rate=0.0"] if model == "tiny_t5" else []
    common = [f"model={model}", "method=lora", "trainer.clip=0.01", *quiet, "task.max_length=64", "trainer.max_steps=4"]
    run(*common, "task.batch_size=4", "trainer.accumulate=2", root=tmp_path / "parts")
    run(*common, "task.batch_size=8", root=tmp_path / "whole")
    run(*common, "task.batch_size=4", root=tmp_path / "half")
    parts, whole, half = (weights(tmp_path / name) for name in ("parts", "whole", "half"))
    assert [line["lr"] for line in log_lines(tmp_path / "parts") if "lr" in line] == [
        line["lr"] for line in log_lines(tmp_path / "whole") if "lr" in line
    ]
    assert the_record(tmp_path / "parts").parts["sentiment"].steps == 4
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-3, atol=2e-5)
    assert any((half[name] - tensor).abs().max() > 1e-4 for name, tensor in whole.items())


def falling_scores(monkeypatch: pytest.MonkeyPatch, scores: list[float]) -> None:
    """The selection split scores ``scores`` in turn."""
    from lrx.callbacks import selection

    values = iter(scores)
    monkeypatch.setattr(selection, "score_split", lambda *_: {"accuracy": next(values)})


EIGHT = ["method=lora", "trainer.max_steps=8", "trainer.evaluations=8"]


def test_early_stopping(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    falling_scores(monkeypatch, [0.5, 0.6, 0.6, 0.4, 0.9])
    run(*EIGHT, "trainer.patience=2")
    part = the_record(tmp_path).parts["sentiment"]
    assert (part.steps, part.best_step) == (4, 2)
    assert part.metrics["select"] == {"accuracy": 0.6}
    assert part.last["select"] == {"accuracy": 0.4}
    assert max(line["step"] for line in log_lines(tmp_path)) == 4
    assert "every metric equals the record" in run(*EIGHT, "trainer.patience=2", "mode=eval").out


def broken_after_training(monkeypatch: pytest.MonkeyPatch) -> None:
    from lrx import training

    def score(*_: Any) -> None:
        raise RuntimeError("broken here")

    monkeypatch.setattr(training, "score", score)


def test_a_run_that_stopped_early_and_broke_does_not_train_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = [*EIGHT, "trainer.patience=2", "callbacks.checkpoint.every_n_steps=1"]
    falling_scores(monkeypatch, [0.5, 0.6, 0.6, 0.4, 0.9])
    run(*choice, root=tmp_path / "whole")
    falling_scores(monkeypatch, [0.5, 0.6, 0.6, 0.4, 0.9, 0.9, 0.9, 0.9])
    with monkeypatch.context() as patch:
        broken_after_training(patch)
        one_line(run(*choice, root=tmp_path / "broken", code=1), "RuntimeError: broken here", "traceback.txt")
    assert the_record(tmp_path / "broken").status == "failed"
    run(*choice, "rerun=failed", root=tmp_path / "broken")
    assert numbers(tmp_path / "broken") == numbers(tmp_path / "whole")


def test_a_run_that_broke_after_its_last_step_reports_the_same_costs(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = [*EIGHT, "callbacks.checkpoint.every_n_steps=1"]
    run(*choice, root=tmp_path / "whole")
    with monkeypatch.context() as patch:
        broken_after_training(patch)
        run(*choice, root=tmp_path / "broken", code=1)
        kept = sorted(path.name for path in (part_folder(tmp_path / "broken") / "checkpoints").iterdir())
        assert kept == ["step-7.ckpt", "step-8.ckpt"]
    run(*choice, "rerun=failed", root=tmp_path / "broken")
    assert not list((part_folder(tmp_path / "broken") / "checkpoints").iterdir())
    assert numbers(tmp_path / "broken") == numbers(tmp_path / "whole")
    broken, whole = the_record(tmp_path / "broken").cost, the_record(tmp_path / "whole").cost
    assert broken["optimizer_state_bytes"] == whole["optimizer_state_bytes"] > 0
    assert broken["peak_memory_bytes"] > 0
    assert broken["median_step_seconds"] > 0


def test_checkpoints_by_time(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_after_training(monkeypatch)
    run(*EIGHT, "callbacks.checkpoint.every_seconds=0.000001", code=1)
    kept = sorted(path.name for path in (part_folder(tmp_path) / "checkpoints").iterdir())
    assert kept == ["time-7.ckpt", "time-8.ckpt"]


def test_no_checkpoints(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_after_training(monkeypatch)
    run(*EIGHT, code=1)
    assert not (part_folder(tmp_path) / "checkpoints").exists()


def test_best_and_last_weights(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for select in ("best", "last"):
        falling_scores(monkeypatch, [0.5, 0.9, 0.4, 0.3, 0.3, 0.3, 0.3, 0.6])
        run(*EIGHT, f"trainer.select={select}", root=tmp_path / select)
    run(*EIGHT, "trainer.evaluations=0", root=tmp_path / "none")
    best, last = (the_record(tmp_path / name).parts["sentiment"] for name in ("best", "last"))
    assert (best.best_step, best.metrics["select"], best.last["select"]) == (2, {"accuracy": 0.9}, {"accuracy": 0.6})
    assert (last.best_step, last.metrics) == (8, last.last)
    assert last.last == best.last
    assert weights(tmp_path / "last").keys() == weights(tmp_path / "best").keys()
    assert any(not torch.equal(t, weights(tmp_path / "best")[name]) for name, t in weights(tmp_path / "last").items())
    none = the_record(tmp_path / "none").parts["sentiment"]  # never selected: the last weights
    assert none.metrics == {"test": last.metrics["test"]}
    assert all(torch.equal(t, weights(tmp_path / "last")[name]) for name, t in weights(tmp_path / "none").items())


def test_no_steps_scores_the_untrained_model(run: Run, tmp_path: Path) -> None:
    from lrx.experiment import build_suite
    from lrx.modules.evaluate import score_split
    from lrx.schema import validate
    from lrx.seeds import derive
    from lrx.training import assemble

    run("method=lora", "trainer.max_steps=0", "task.eval_limit=null")
    record = the_record(tmp_path)
    part = record.parts["sentiment"]
    assert (record.status, part.steps, part.best_step) == ("finished", 0, 0)
    assert record.cost["trainable_parameters"] > 0
    assert record.cost["optimizer_state_bytes"] == 0
    settings = validate(record.config)
    (task,) = build_suite(settings).parts()
    backbone, _ = assemble(task, settings)
    task.bind(backbone, derive(settings.seed, "data"))
    assert part.metrics == {"test": score_split(backbone, task, "test", "32-true")}
    assert all((t == 0).all() for name, t in weights(tmp_path).items() if name.endswith(".B"))
    assert "every metric equals" in run("method=lora", "trainer.max_steps=0", "task.eval_limit=null", "mode=eval").out


# Loggers.


def tracks(root: Path) -> list[str]:
    """The folders of trackers that a run left."""
    names = ("csv", "tensorboard", "wandb")
    return sorted(path.name for path in root.glob("runs/*/*") if path.name in names)


def wandb_runs(root: Path) -> list[Path]:
    return sorted(root.glob("runs/*/wandb/offline-run-*"))


def wandb_records(path: Path) -> Iterator[bytes]:
    """The records of an offline run's file: LevelDB's log format behind a header of 7 bytes, in blocks of 32 KiB."""
    data, position, whole = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        size, kind = struct.unpack_from("<HB", data, position + 4)  # behind the checksum
        whole += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # a full record, or the last piece of one
            yield whole
            whole = b""


def wandb_content(folder: Path) -> dict[str, Any]:
    """The keys of the history and the summary, and the exit code, in an offline run's file."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("run-*.wandb")
    keys: set[str] = set()
    summary: set[str] = set()
    exit_code: int | None = None
    for data in wandb_records(path):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "history":
            keys |= {item.key or "/".join(item.nested_key) for item in record.history.item}
        elif kind == "summary":
            summary |= {item.key or "/".join(item.nested_key) for item in record.summary.update}
        elif kind == "exit":
            exit_code = record.exit.exit_code
    return {"history": keys, "summary": summary, "exit": exit_code}


def test_without_a_logger_nothing_is_left_beside_the_record(run: Run, tmp_path: Path) -> None:
    run("method=lora")
    assert tracks(tmp_path) == []
    assert the_record(tmp_path).environment["loggers"] == []
    assert sorted(p.name for p in part_folder(tmp_path).iterdir() if p.is_file()) == [
        "adapter.safetensors", "metrics.jsonl", "predictions.test.csv"
    ]  # fmt: skip


def test_csv_and_tensorboard_hold_every_logged_value(run: Run, tmp_path: Path) -> None:
    import csv

    run("method=lora", "logger=csv", "logger.every_n_steps=1", root=tmp_path / "csv")
    assert tracks(tmp_path / "csv") == ["csv"]
    (path,) = (tmp_path / "csv").glob("runs/*/csv/metrics.csv")
    rows = list(csv.DictReader(path.open()))
    mirrored = [(int(r["step"]), float(r["sentiment/train/loss"])) for r in rows if r["sentiment/train/loss"]]
    assert mirrored == [(line["step"], line["train/loss"]) for line in log_lines(tmp_path / "csv") if "lr" in line]

    run("method=lora", "logger=tensorboard", "logger.every_n_steps=1", root=tmp_path / "tb")
    assert tracks(tmp_path / "tb") == ["tensorboard"]
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (folder,) = (tmp_path / "tb").glob("runs/*/tensorboard")
    events = accumulator.EventAccumulator(str(folder)).Reload()
    shown = [(event.step, event.value) for event in events.Scalars("sentiment/train/loss")]
    assert shown == [(step, pytest.approx(loss, rel=1e-6)) for step, loss in mirrored]


def test_wandb_offline_has_one_finished_run_per_run(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    run("-m", "method=head,lora", "logger=wandb", "logger.every_n_steps=1")
    folders = wandb_runs(tmp_path)
    assert len({path.parent.parent for path in folders}) == len(folders) == 2
    assert wandb.run is None
    for folder in folders:
        content = wandb_content(folder)
        assert content["exit"] == 0
        assert {"sentiment/train/loss", "sentiment/select/accuracy"} <= content["history"]
        assert "sentiment/test/accuracy" in content["summary"]
    broken_after_training(monkeypatch)
    run("method=lora", "seed=1", "logger=wandb", code=1)
    (failed,) = set(wandb_runs(tmp_path)) - set(folders)
    assert wandb.run is None
    assert wandb_content(failed)["exit"] == 1


def test_an_offline_logger_does_not_keep_later_runs_offline(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE")
    run("method=head", "logger=wandb")
    assert "WANDB_MODE" not in os.environ


@pytest.mark.parametrize("kind", ["csv", "tensorboard", "wandb"])
def test_a_logger_that_breaks_in_the_middle_costs_nothing_but_itself(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    import wandb

    from lrx import trackers

    cls = {"csv": "CSVLogger", "tensorboard": "TensorBoardLogger", "wandb": "WandbLogger"}[kind]
    calls = []

    def log_metrics(self: Any, metrics: dict[str, float], step: int | None = None) -> None:
        calls.append(step)
        if len(calls) == 2:
            raise OSError("no space left\non device")

    with monkeypatch.context() as patch:
        patch.setattr(getattr(trackers, cls), "log_metrics", log_metrics)
        result = run("method=lora", f"logger={kind}", "logger.every_n_steps=1", root=tmp_path / kind)
    assert len(calls) == 2  # asked no more
    one_line(result, f"warning: {cls} is not available (no space left on device)")
    run("method=lora", root=tmp_path / "none")
    assert numbers(tmp_path / kind) == numbers(tmp_path / "none")
    assert wandb.run is None  # else the next run of a sweep would write into this one
    if kind == "wandb":
        run("-m", "method=head", "logger=wandb", root=tmp_path / "next")
        assert len(wandb_runs(tmp_path / "next")) == 1


@pytest.mark.parametrize("kind", ["csv", "tensorboard", "wandb"])
def test_a_logger_that_cannot_start_or_end_costs_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from lrx import trackers

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no service")

    cls = {"csv": "CSVLogger", "tensorboard": "TensorBoardLogger", "wandb": "WandbLogger"}[kind]
    with monkeypatch.context() as patch:
        patch.setattr(trackers, cls, type("Broken", (getattr(trackers, cls),), {"__init__": broken}))
        one_line(run("method=head", f"logger={kind}", root=tmp_path / "start"), f"warning: {kind} is not available")
    with monkeypatch.context() as patch:
        patch.setattr(getattr(trackers, cls), "finalize", broken)
        if kind == "wandb":
            import wandb

            finish = wandb.Run.finish
            patch.setattr(wandb.Run, "finish", lambda self, *a, **k: (finish(self, *a, **k), broken()))
        one_line(run("method=head", f"logger={kind}", root=tmp_path / "end"), "is not available (no service)")
    for place in ("start", "end"):
        assert the_record(tmp_path / place).status == "finished"


# mode=eval and the record.


def test_eval_holds_the_weights_against_the_record(run: Run, tmp_path: Path) -> None:
    choice = ["method=altlora", "model=tiny_llama"]
    one_line(run(*choice, "mode=eval", code=2), "mode=eval: no record", "train first")
    run(*choice)
    (path,) = tmp_path.glob("records/*.json")
    before = path.read_text()
    result = run(*choice, "mode=eval")
    assert "every metric equals the record" in result.out
    assert "DIFFERENT" not in result.out
    assert path.read_text() == before

    raw = json.loads(before)
    raw["parts"]["sentiment"]["metrics"]["test"]["accuracy"] += 1 / 16
    path.write_text(json.dumps(raw))
    one_line(result := run(*choice, "mode=eval", code=1), "failed: ", "1 metrics differ", "sentiment test accuracy")
    assert "DIFFERENT" in result.out
    path.write_text(before)

    stored = part_folder(tmp_path) / "adapter.safetensors"
    content = stored.read_bytes()
    stored.write_bytes(content[:100])
    one_line(run(*choice, "mode=eval", code=2), str(stored))
    stored.unlink()
    one_line(run(*choice, "mode=eval", code=2), f"{stored} is missing", "rerun=all")
    assert path.read_text() == before


def test_eval_uses_the_weights_that_are_stored(run: Run, tmp_path: Path) -> None:
    """With the adapter of an untrained model in its place the scores are others: eval does read it."""
    choice = ["method=full", "method.lr=0.05", "trainer.max_steps=8", "task.eval_limit=200"]
    run(*choice)
    assert "every metric equals" in run(*choice, "mode=eval").out
    run(*choice, "trainer.max_steps=0", root=tmp_path / "untrained")
    other = part_folder(tmp_path / "untrained") / "adapter.safetensors"
    shutil.copy(other, part_folder(tmp_path) / "adapter.safetensors")
    run(*choice, "mode=eval", code=1)


def test_the_record_is_complete(run: Run, tmp_path: Path) -> None:
    from lrx import config
    from lrx.results.record import RunRecord
    from lrx.schema import validate

    result = run("method=altlora", "seed=3", "logger.every_n_steps=1", "trainer.evaluations=2")
    record = the_record(tmp_path)
    empty = {"message"}
    for field in dataclasses.fields(RunRecord):
        value = getattr(record, field.name)
        assert (not value) == (field.name in empty), field.name
    assert record.finished >= record.started
    assert (record.method, record.model, record.task, record.scale, record.source, record.seed) == (
        "altlora", "tiny_bert", "glue", "smoke", "embedded", 3
    )  # fmt: skip
    settings = validate(record.config)
    assert config.fingerprint(settings) == record.fingerprint
    assert config.run_id(settings) == record.run_id
    part = record.parts["sentiment"]
    for field in dataclasses.fields(part):
        assert getattr(part, field.name) not in (None, {}, []) or field.name == "notes", field.name
    assert part.sizes == {"train": 16, "select": 16, "test": 16}
    assert (part.steps, set(part.metrics), set(part.last)) == (2, {"test", "select"}, {"test", "select"})
    for path in part.predictions.values():
        rows = (tmp_path / path).read_text().splitlines()
        assert (rows[0], len(rows)) == ("index,prediction,reference", 17)
    cost_keys = {
        "trainable_parameters", "adapter_parameters", "optimizer_state_bytes", "peak_memory_bytes",
        "median_step_seconds", "examples_per_second", "train_seconds", "wall_seconds",
    }  # fmt: skip
    assert cost_keys <= record.cost.keys()
    assert all(record.cost[key] > 0 for key in cost_keys)
    assert record.cost["trainable_parameters"] == sum(t.numel() for t in weights(tmp_path).values())
    assert {"python", "lrx", "torch", "transformers", "peft", "cpu", "threads"} <= record.environment.keys()
    lines = log_lines(tmp_path)
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2]
    assert [line["step"] for line in lines if "select/accuracy" in line] == [1, 2]
    accuracy = part.metrics["test"]["accuracy"]
    assert f"accuracy {accuracy:.4f}" in result.out  # the summary at the end
    assert str(next(tmp_path.glob("records/*.json"))) in result.out
    assert not list(tmp_path.glob("runs/*/*/part.json"))


def test_the_record_of_several_parts(run: Run, tmp_path: Path) -> None:
    run("method=lora", "task.subset=[sentiment,intensity,domain]")
    record = the_record(tmp_path)
    assert list(record.parts) == ["sentiment", "intensity", "domain"]
    assert set(record.parts["intensity"].metrics["test"]) == {"pearson", "spearman"}
    assert (part_folder(tmp_path, "intensity") / "metrics.jsonl").exists()
    alone = tmp_path / "alone"
    run("method=lora", "task.subset=domain", root=alone)
    assert the_record(alone).parts["domain"].metrics == record.parts["domain"].metrics  # parts do not touch each other


# Sweeps.

SWEEP = ["-m", "method=head,lora", "seed=0,1"]


def test_a_sweep_runs_each_job_once(run: Run, tmp_path: Path) -> None:
    first = run(*SWEEP)
    assert "4 run, 0 already finished, 0 failed" in first.out
    records = sorted(tmp_path.glob("records/*.json"))
    assert len(records) == 4
    before = {path: path.read_text() for path in records}
    again = run(*SWEEP)
    assert "0 run, 4 already finished, 0 failed" in again.out
    assert again.out.count("already finished, nothing done; rerun=all repeats it: ") == 4
    assert {path: path.read_text() for path in records} == before

    lost = records[2]
    stored = tmp_path / "runs" / lost.stem / "sentiment" / "adapter.safetensors"
    content = stored.read_bytes()
    lost.unlink()
    stored.unlink()
    third = run(*SWEEP)
    assert "1 run, 3 already finished, 0 failed" in third.out
    assert sorted(tmp_path.glob("records/*.json")) == records
    assert stored.read_bytes() == content  # it was trained again, not pieced together
    assert {path: path.read_text() for path in records if path != lost} == {
        p: t for p, t in before.items() if p != lost
    }
    old = json.loads(before[lost])
    new = json.loads(lost.read_text())
    assert new["parts"] == old["parts"]
    assert new["started"] >= old["finished"]


def test_rerun_all_repeats_and_failed_repeats_what_failed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lrx import experiment

    failing = {"lora"}
    started: list[str] = []
    train_part = experiment.train_part

    def watched(task: Any, settings: Any, folder: Path, tracker: Any) -> Any:
        started.append(settings.method["name"])
        if settings.method["name"] in failing:
            raise RuntimeError("broken here")
        return train_part(task, settings, folder, tracker)

    monkeypatch.setattr(experiment, "train_part", watched)
    jobs = ["-m", "method=head,lora"]
    assert "1 run, 0 already finished, 1 failed" in run(*jobs, code=1).out
    assert started == ["head", "lora"]
    failing.clear()
    started.clear()
    again = run(*jobs, code=1)  # what failed would most likely fail again: it is left until asked for
    assert "0 run, 1 already finished, 1 failed" in again.out
    assert "broken here" in again.err
    assert "rerun=failed" in again.err
    assert started == []
    assert "1 run, 1 already finished, 0 failed" in run(*jobs, "rerun=failed").out
    assert started == ["lora"]
    started.clear()
    assert "0 run, 2 already finished, 0 failed" in run(*jobs, "rerun=failed").out
    assert "0 run, 2 already finished, 0 failed" in run(*jobs).out
    assert started == []
    assert "2 run, 0 already finished, 0 failed" in run(*jobs, "rerun=all").out
    assert started == ["head", "lora"]


def test_a_failed_run_is_recorded(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        broken_after_training(patch)
        result = run("method=lora", code=1)
    one_line(result, "RuntimeError: broken here")
    record = the_record(tmp_path)
    assert (record.status, record.parts) == ("failed", {})
    assert "broken here" in record.message
    (trace,) = tmp_path.glob("runs/*/traceback.txt")
    assert "RuntimeError: broken here" in trace.read_text()


# Export.


def batch_and_logits(root: Path) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Some test sentences and what the trained model of the record says to them."""
    from lrx.experiment import build_suite
    from lrx.schema import validate
    from lrx.seeds import derive
    from lrx.training import assemble

    settings = validate(the_record(root).config)
    (task,) = build_suite(settings).parts()
    backbone, method = assemble(task, settings)
    task.bind(backbone, derive(settings.seed, "data"))
    batch = next(iter(task.eval_dataloader("test")))
    before = backbone.eval()(batch).detach()
    method.load_adapter(backbone, weights(root))
    with torch.no_grad():
        after = backbone.eval()(batch)
    assert (after - before).abs().max() > 0.05  # training moved the outputs, so that equality says something
    return {key: batch[key] for key in ("input_ids", "attention_mask", "token_type_ids")}, after


def export(root: Path, form: str, out: Path) -> Path:
    from lrx.__main__ import main

    (record,) = root.glob("records/*.json")
    assert main(["export", str(record), "--format", form, "--out", str(out)]) == 0
    return out / "sentiment"


TRAINED = ["model=minilm", "method.lr=0.05", "trainer.max_steps=4", "trainer.schedule=constant", "trainer.select=last"]


def test_an_exported_adapter_is_read_by_peft(run: Run, tmp_path: Path) -> None:
    """On the base model that the adapter's configuration names."""
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForSequenceClassification

    run("method=lora", *TRAINED)
    batch, expected = batch_and_logits(tmp_path)
    folder = export(tmp_path, "peft", tmp_path / "out")
    base = str(PeftConfig.from_pretrained(str(folder)).base_model_name_or_path)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    model = PeftModel.from_pretrained(model, str(folder)).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_an_exported_merged_model_is_read_by_transformers(run: Run, tmp_path: Path, method: str) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    run(
        f"method={method}",
        *[o for o in TRAINED if method == "lora" or "lr=" not in o],
        *(["method.lr=0.001"] * (method == "full")),
    )
    batch, expected = batch_and_logits(tmp_path)
    folder = export(tmp_path, "merged", tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, expected, rtol=1e-4, atol=1e-4)
    assert AutoTokenizer.from_pretrained(folder)("a film").input_ids[0] == batch["input_ids"][0, 0]


def test_what_cannot_be_exported_is_one_line(run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from lrx.__main__ import main

    run("method=full")
    (record,) = tmp_path.glob("records/*.json")
    capfd.readouterr()
    assert main(["export", str(record)]) == 2
    assert "use --format merged" in capfd.readouterr().err
    (part_folder(tmp_path) / "adapter.safetensors").unlink()
    assert main(["export", str(record), "--format", "merged"]) == 2
    assert "is missing; rerun=all" in capfd.readouterr().err
