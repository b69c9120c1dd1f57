"""What a sweep costs besides its training, and how fast its results are read.

    python -m benchmarks.sweeps            # all of it, about two minutes
    python -m benchmarks.sweeps --jobs 8   # fewer jobs in the measurement of the overhead

Measured with ``scale=smoke``, one thread, no logger:
overhead per job: wall time between the start of a job's process and its record, less the seconds its trainer took, over
jobs behind the first (which loads what the others share); start of the warm server; a sweep of 500 finished jobs;
``table`` and ``status`` with 2,000 records in the folder, twice each: with and without remembered compositions.
"""

from __future__ import annotations

import argparse
import copy
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lrx.engine.compose import Composer, expand
from lrx.engine.jobs import Job, make_all
from lrx.results.record import RunRecord, read_all, record_path

SMOKE = ["scale=smoke", "task.subset=sentiment", "logger=none", "trainer.threads=1"]


def timed(*arguments: str, cache: Path | None = None) -> tuple[float, str]:
    """Wall seconds of ``python ARGUMENTS`` and what it printed."""
    environment = {**os.environ, **({"LRX_CACHE": str(cache)} if cache else {})}
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return seconds, done.stdout


def overhead(root: Path, jobs: int) -> None:
    """Per job of one sweep: process start to end, less training."""
    seeds = ",".join(map(str, range(jobs)))
    seconds, out = timed("run.py", "-m", "method=lora", f"seed={seeds}", *SMOKE, f"paths.root={root}")
    records, _ = read_all(root)
    trained = {record.seed: record.cost["train_seconds"] for record in records}
    walls = {int(s): float(t) for s, t in re.findall(r"seed=(\d+): finished in ([\d.]+) s", out)}
    beyond = [walls[seed] - trained[seed] for seed in sorted(walls)[1:]]
    training = statistics.median(trained.values())
    print(
        f"overhead of a job beyond its training: median {statistics.median(beyond):.2f} s, max {max(beyond):.2f} s "
        f"over {len(beyond)} jobs (training: median {training:.2f} s)"
    )
    print(f"the whole sweep of {jobs} jobs: {seconds:.1f} s, of which training {sum(trained.values()):.1f} s")


def finished_records(root: Path, like: RunRecord, overrides: list[str]) -> int:
    """Copies of ``like`` as the finished records of a grid; how many."""
    count = 0
    for job in make_all(expand(overrides), Composer()):
        assert isinstance(job, Job), job
        record = copy.deepcopy(like)
        record.run_id, record.fingerprint, record.method, record.seed = (
            job.run_id,
            job.fingerprint,
            job.method,
            job.seed,
        )
        record.config, record.scale, record.model = job.config, job.settings.scale.name, job.settings.model["name"]
        path = record_path(root, job.run_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(record.to_json())  # without the fsync that a run's own record gets
        count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        overhead(root / "overhead", options.jobs)
        like = read_all(root / "overhead")[0][0]
        grid = ["method=head,full,lora,altlora,altlora_plus", "seed=" + ",".join(map(str, range(100))), *SMOKE]
        count = finished_records(root / "five", like, grid)
        seconds, out = timed("run.py", "-m", *grid, f"paths.root={root / 'five'}")
        print(f"a sweep of {count} finished jobs: {seconds:.1f} s ({out.strip().splitlines()[-1]})")

        many = root / "many"
        finished_records(
            many, like, ["+sweeps=altlora_glue", "method=head,full,lora,altlora,altlora_plus", "seed=0,1,2"]
        )
        finished_records(many, like, ["method=head,full,lora,altlora,altlora_plus",
                                      "seed=" + ",".join(map(str, range(397))), *SMOKE])  # fmt: skip
        records = len(list((many / "records").glob("*.json")))
        cache = root / "cache"
        for verb in ("status", "table"):
            cold, _ = timed("-m", "lrx", verb, "altlora_glue", "--root", str(many), cache=cache)
            warm = min(timed("-m", "lrx", verb, "altlora_glue", "--root", str(many), cache=cache)[0] for _ in range(3))
            print(f"{verb} with {records} records: {warm:.2f} s ({cold:.2f} s the first time)")
            for path in (cache / "composed").glob("*"):
                path.unlink()


if __name__ == "__main__":
    main()
