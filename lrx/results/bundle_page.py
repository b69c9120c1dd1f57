"""What an archive of results says in words: its README, its resolved configurations, its environments."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import yaml

from lrx import __version__
from lrx.results.record import RunRecord
from lrx.results.sweep import Sweep

# A resolved configuration is a primary one: what conf/config.yaml says to Hydra has to stand in it too.
_HYDRA = {"run": {"dir": "${paths.root}/hydra"}, "output_subdir": None, "job": {"chdir": False}}


def resolved(config: dict[str, Any]) -> str:
    """A run's whole configuration as a file that ``run.py --config-dir D --config-name NAME`` takes."""
    body = {**config, "paths": {"root": "results"}, "rerun": "none", "mode": "train", "hydra": _HYDRA}
    return "# The resolved configuration of one run.\n" + yaml.safe_dump(body, sort_keys=True, allow_unicode=True)


def environments(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """The distinct environments that runs were made in, each with its runs."""
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        key = json.dumps(record.environment, sort_keys=True)
        found.setdefault(key, {"environment": record.environment, "runs": []})["runs"].append(record.run_id)
    return [found[key] for key in sorted(found)]


def readme(
    sweep: Sweep, overrides: Sequence[str], records: Sequence[RunRecord], runs: Sequence[str], weights: bool
) -> str:
    """What is in the archive and the commands that use it."""
    extra = "".join(f" {word}" for word in overrides)
    commits = sorted({str(r.environment.get("commit")) for r in records if r.environment.get("commit")})
    changed = any(record.environment.get("dirty") for record in records)
    code = f"lrx {__version__}" + (f", commit {', '.join(commits)}" if commits else "")
    code += " (with local changes)" if changed else ""
    example = records[0].run_id
    return f"""# {sweep.title}

Results of the sweep `{sweep.name}`{f" with{extra}" if extra else ""}: {len(records)} records of {len(runs)} jobs.
Made with {code}.

| | |
|---|---|
| `records/` | one JSON file per run: outcome, scores, evaluation curve, costs, configuration, environment |
| `runs/` | per run and part `metrics.jsonl` (losses and scores by step), predictions{", weights" if weights else ""} |
| `configs/` | the resolved configuration of every job, also of those without a record |
| `jobs.json` | the jobs of the grid with their fingerprints |
| `tables/` | the table as it was when this archive was made |
| `sweeps/`, `conf/` | the sweep file and the configuration it was composed from, tuned learning rates included |
| `environment.json` | versions, processor and commit of each run |
| `requirements.lock`, `constraints.txt` | the exact packages, if the runs were made in a checkout |
| `manifest.json` | SHA-256 of every file |

The table again, from the archive itself or from the unpacked folder:

    python -m lrx table {sweep.name}{extra} --records BUNDLE.zip --out again
    python -m lrx unbundle BUNDLE.zip --to unpacked
    python -m lrx table {sweep.name}{extra} --root unpacked

A run again, from its resolved configuration (in a checkout of lrx at the commit above, after
`pip install -r unpacked/requirements.lock`):

    python run.py --config-dir unpacked/configs --config-name {example} paths.root=again

All of them, as far as they are not below `again` already:

    python run.py +sweeps={sweep.name}{extra} paths.root=again
"""
