"""Unusable environments and impossible requests: one clear line, the right exit code, earlier results intact."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT


def one_line(result, code: int, *words: str) -> None:
    """The command failed with ``code`` and one line that holds ``words``; no traceback."""
    assert result.code == code, result
    lines = result.err.strip().splitlines()
    assert len(lines) == 1, result
    for word in words:
        assert word in lines[0], result


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("method.rank=0", ["method.rank=0", "at least 1"]),
        ("method.rank=500", ["500", "32", "query"]),
        ("method.target_modules=[qurey]", ["qurey", "did you mean 'query'"]),
        ("method.target_modules=nothing_here", ["nothing_here", "no layer"]),
        ("method.alpha=-1", ["method.alpha=-1"]),
        ("method.lr=0", ["method.lr=0"]),
        ("model=tiny_vit", ["images", "choose another"]),
    ],
)
def test_an_impossible_method_or_model(cli, smoke, override: str, words: list[str], tmp_path) -> None:
    one_line(cli("method=altlora", *smoke, override), 2, *words)
    assert not list(tmp_path.glob("records/*"))


def rte(folder: Path, rows: list[str], dev: list[str] | None = None) -> Path:
    """A GLUE folder with RTE files of these rows."""
    header = "index\tsentence1\tsentence2\tlabel"
    (folder / "RTE").mkdir(parents=True)
    for name, content in (("train", rows), ("dev", dev if dev is not None else rows)):
        (folder / "RTE" / f"{name}.tsv").write_text("\n".join([header, *content]) + "\n")
    return folder


GOOD = [f"{i}\tThe film number {i} is long.\tIt is long.\t{'not_' * (i % 2)}entailment" for i in range(40)]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([*GOOD[:5], "5\tonly two columns"], ["train.tsv", "7"]),
        ([*GOOD[:5], "5\ta\tb\tmaybe"], ["train.tsv", "7", "maybe", "entailment"]),
        ([], ["train.tsv"]),
    ],
)
def test_a_broken_data_file_is_named_with_its_line(cli, smoke, rows, words, tmp_path) -> None:
    data = rte(tmp_path / "glue", rows, GOOD)
    local = [o for o in smoke if not o.startswith("task.subset")]
    local += ["task.subset=rte", "task.source=local", f"task.data_dir={data}"]
    one_line(cli("method=lora", *local), 2, *words)


def test_a_missing_data_file_says_what_was_expected(cli, smoke, tmp_path) -> None:
    local = ["task.subset=rte", "task.source=local", f"task.data_dir={tmp_path}"]
    one_line(cli("method=lora", *[o for o in smoke if "subset" not in o], *local), 2, "RTE", str(tmp_path))


def test_local_data_is_part_of_the_identity_and_its_folder_is_not(cli, smoke, tmp_path) -> None:
    base = ["method=head", *[o for o in smoke if "subset" not in o], "task.subset=rte", "task.source=local"]
    rte(tmp_path / "a", GOOD)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    rte(tmp_path / "c", GOOD[:-1])
    assert cli(*base, f"task.data_dir={tmp_path / 'a'}").code == 0
    assert "already finished" in cli(*base, f"task.data_dir={tmp_path / 'b'}").out
    assert "already finished" not in cli(*base, f"task.data_dir={tmp_path / 'c'}").out
    assert len(list(tmp_path.glob("records/*.json"))) == 2


def test_hub_without_network_fails_within_five_seconds(cli, smoke, monkeypatch, tmp_path) -> None:
    with socket.socket() as held:  # a port that nobody listens on
        held.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{held.getsockname()[1]}")
        monkeypatch.setenv("HF_HOME", str(tmp_path))
        started = time.monotonic()
        result = cli("method=lora", *[o for o in smoke if "subset" not in o], "task.source=hub", "task.subset=rte")
        assert time.monotonic() - started < 5
        one_line(result, 2, "hub", "task.source")


def test_results_folder_that_cannot_be_written(cli, smoke, tmp_path) -> None:
    """A file stands where the folder should be: refused for every user, root included."""
    (tmp_path / "occupied").write_text("")
    result = cli("method=lora", *[o for o in smoke if "paths" not in o], f"paths.root={tmp_path}/occupied/results")
    one_line(result, 2, "occupied")


def test_file_size_limit_stops_the_run_with_a_line_and_leaves_no_half_record(smoke, tmp_path) -> None:
    def limited(queue) -> None:
        from lrx.launch import main

        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        sys.stderr = open(tmp_path / "err", "w")  # noqa: SIM115 - the process ends below
        code = main(["method=full", *smoke])
        sys.stderr.close()
        queue.put(code)

    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=limited, args=(queue,))
    process.start()
    code = queue.get(timeout=120)
    process.join(30)
    assert code in (1, 2)
    assert "Traceback" not in (tmp_path / "err").read_text()
    for path in tmp_path.glob("records/*.json"):
        assert path.read_text().rstrip().endswith("}")


def test_a_diverging_run_is_a_record_with_its_outcome(cli, smoke, tmp_path) -> None:
    from lrx.results.record import read

    result = cli("method=full", *smoke, "method.lr=1e30", "trainer.clip=null", "logger.every_n_steps=1")
    assert result.code == 1, result
    assert "diverged" not in result.out
    assert "smaller method.lr" in result.err
    (path,) = tmp_path.glob("records/*.json")
    assert read(path).status == "diverged"


def test_a_multirun_goes_on_after_a_failed_job(cli, smoke, tmp_path) -> None:
    from lrx.results.record import read_all

    result = cli("-m", "method=lora", "method.rank=500,4", *smoke)
    assert result.code == 1, result
    assert "1 run, 0 already finished, 1 failed" in result.out
    assert "method.rank=500" in result.err
    records, problems = read_all(tmp_path)
    assert problems == []
    assert sorted(record.status for record in records) == ["failed", "finished"]


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root to cut the network")
def test_a_default_run_works_without_any_network(tmp_path) -> None:
    """In a network name space of its own that has no interface up, loopback for wandb's local service excepted."""
    smoke = f"run.py method=altlora scale=smoke task.subset=sentiment paths.root={tmp_path}"
    probe = subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("this container does not allow network name spaces")
    script = f"ip link set lo up 2>/dev/null; exec {sys.executable} {smoke}"
    done = subprocess.run(["unshare", "-n", "sh", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "finished" in done.stdout
    assert list(tmp_path.glob("runs/*/wandb/offline-run-*"))


def test_a_default_run_opens_no_connection_beyond_this_machine(cli, tmp_path, monkeypatch) -> None:
    reached = []
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(("127.", "::1")):
            reached.append(address)
            raise OSError("the network is forbidden here")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    result = cli("method=lora", "scale=smoke", "task.subset=sentiment", f"paths.root={tmp_path}")
    assert result.code == 0, result
    assert not reached
