"""``python -m lrx sync``: runs go to wandb afterwards, out of their local files, which stay the truth.

Each run becomes one wandb run whose id is made from the run id, so that a second upload replaces the first. It holds
the configuration, every line of ``metrics.jsonl``, the evaluation curve, the final scores and costs, and the record
itself as text, from which ``--records`` makes the same table again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lrx.errors import UserError, did_you_mean
from lrx.files import cannot, write_atomic
from lrx.results.history import metric_log, read_history
from lrx.results.record import Problem, RunRecord, read_all, record_path
from lrx.results.wandb_files import RECORD_KEY

STEP = "trainer/global_step"  # the x axis: wandb's own step never goes back, as a second part's steps do
UPLOAD_SECONDS = 600.0
PROBE_SECONDS = 5.0


@dataclass
class Synced:
    """What one command did: ids of uploaded and of unchanged runs, and records that could not be read."""

    uploaded: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def sync(
    root: Path,
    runs: Sequence[str] = (),
    *,
    every: bool = False,
    project: str | None = None,
    entity: str | None = None,
    offline: bool = False,
) -> Synced:
    """Upload the records of ``runs`` (or ``every`` one below ``root``) to wandb, or write wandb's files for them.

    A run whose files have not changed since it was uploaded there is left out. Raises ``UserError`` without a key or a
    network, and when an upload fails; what was uploaded before stays, and the same command goes on with the rest.
    """
    found = Synced()
    records = _chosen(root, runs, every, found)
    where = "" if offline else _server()
    for record in records:
        target = {
            "server": where,
            "project": project or _logger(record).get("project") or "lrx",
            "entity": entity or _logger(record).get("entity"),
        }
        marker = root / "runs" / record.run_id / "synced.json"
        state = {"id": wandb_id(record.run_id), **target, "digest": digest(root, record)}
        if not offline and _read_marker(marker) == state:
            found.unchanged.append(record.run_id)
            continue
        try:
            upload(root, record, target, offline=offline)
        except UserError:
            raise
        except Exception as error:  # whatever wandb raises; KeyboardInterrupt passes
            from lrx.wandb_service import forget_service, one_line

            forget_service()
            done = f"{len(found.uploaded)} of {len(records)} runs were uploaded"
            raise UserError(f"wandb: {record.run_id}: {one_line(error)}; {done}, the same command goes on") from error
        if not offline:
            write_atomic(marker, json.dumps(state, indent=1) + "\n")
        found.uploaded.append(record.run_id)
    return found


def upload(root: Path, record: RunRecord, target: dict[str, Any], *, offline: bool) -> None:
    """One record and its logs as one finished wandb run."""
    from lrx.wandb_service import finish_run, start_run

    folder = offline_folder(root, record.run_id) if offline else root / "runs" / record.run_id
    try:
        if offline and folder.exists():
            shutil.rmtree(folder)
        (folder / "wandb").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot("write", folder, error) from error
    run = start_run(
        online=not offline,
        finish_seconds=UPLOAD_SECONDS,
        id=wandb_id(record.run_id),  # without resume=, an earlier upload under this id is replaced
        name=record.run_id,
        project=target["project"],
        entity=target["entity"],
        group=_logger(record).get("group") or record.task,
        job_type=record.method,
        tags=[record.status, record.scale],
        dir=str(folder),
        config={**record.config, RECORD_KEY: record.to_json(indent=None)},
    )
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP, step_sync=True)
    for row in history(root, record):
        run.log(row)
    for part in record.parts.values():
        for name in sorted({*part.predictions.values(), *part.last_predictions.values()}):
            _attach(run, root, name)
    run.summary.update(summary(record))
    finish_run(run, exit_code=0 if record.status == "finished" else 1)


def _attach(run: Any, root: Path, name: str) -> None:
    """A file of predictions, under its name below ``root``. A copy: wandb would link to ours."""
    source, copy = root / name, Path(run.dir) / name
    if not source.is_file() or ".." in Path(name).parts:
        return
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, copy)
    run.save(str(copy), base_path=str(run.dir), policy="now")


def history(root: Path, record: RunRecord) -> Iterator[dict[str, Any]]:
    """Rows for wandb, part by part in step order: the lines of ``metrics.jsonl``, then what the curve has besides.

    Names are those of the live logger: ``sentiment/train/loss``. The step is ``trainer/global_step``. A part that a
    failed run did not finish has its log only.
    """
    logged = (path.parent.name for path in (root / "runs" / record.run_id).glob("*/metrics.jsonl"))
    for name in dict.fromkeys([*record.parts, *sorted(logged)]):
        rows: dict[int, dict[str, Any]] = {}
        for line in read_history(metric_log(root, record.run_id, name)):
            values = {f"{name}/{key}": value for key, value in line.items() if key != "step"}
            rows.setdefault(line["step"], {}).update(values)
        for entry in record.parts[name].curve if name in record.parts else ():
            for split, scores in entry["splits"].items():
                values = {f"{name}/{split}/{key}": value for key, value in scores.items()}
                rows.setdefault(entry["step"], {}).update(values)
        for step, values in sorted(rows.items()):
            yield {STEP: step, **values}


def summary(record: RunRecord) -> dict[str, Any]:
    """The final numbers: scores of the selected checkpoint and of the last step, costs, the outcome."""
    found: dict[str, Any] = {"status": record.status, "message": record.message}
    for name, part in record.parts.items():
        for kind, table in (("", part.metrics), ("last/", part.last)):
            for split, scores in table.items():
                found |= {f"{name}/{kind}{split}/{key}": value for key, value in scores.items()}
    return found | {f"cost/{key}": value for key, value in record.cost.items()}


def digest(root: Path, record: RunRecord) -> str:
    """SHA-256 of all that is uploaded of a run."""
    total = hashlib.sha256(record.to_json().encode())
    for row in history(root, record):
        total.update(json.dumps(row, sort_keys=True).encode())
    return total.hexdigest()


def wandb_id(run_id: str) -> str:
    """The id of the wandb run: always the same for a run, and short enough for wandb."""
    return hashlib.sha256(run_id.encode()).hexdigest()[:16]


def offline_folder(root: Path, run_id: str) -> Path:
    """Where ``--offline`` writes wandb's files of a run."""
    return record_path(root / "wandb-export", run_id).parent.parent / run_id


def _logger(record: RunRecord) -> dict[str, Any]:
    section = record.config.get("logger")
    return section if isinstance(section, dict) else {}


def _chosen(root: Path, runs: Sequence[str], every: bool, found: Synced) -> list[RunRecord]:
    if every == bool(runs):
        raise UserError("give the run ids to upload, or --all (not both); python -m lrx sync --all --root results")
    records, found.problems = read_all(root)
    known = {record.run_id: record for record in records}
    for name in runs:
        if name.removesuffix(".json") not in known:
            broken = [str(problem) for problem in found.problems if problem.path.stem == name.removesuffix(".json")]
            raise UserError(broken[0] if broken else f"no record {name!r} below {root}; {did_you_mean(name, known)}")
    return records if every else [known[name.removesuffix(".json")] for name in runs]


def _server() -> str:
    """The server's address, once it is sure that there is a key and that somebody answers there."""
    from lrx.wandb_service import server

    rest = "nothing was uploaded and nothing is lost; --offline writes wandb's files instead"
    try:
        address = server()
    except UserError as error:
        raise UserError(f"wandb: {error}; {rest}") from None
    parts = urlsplit(address)
    proxy = any(os.environ.get(name) for name in ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY"))
    if not proxy and parts.hostname:
        try:
            port = parts.port or (443 if parts.scheme == "https" else 80)
            socket.create_connection((parts.hostname, port), timeout=PROBE_SECONDS).close()
        except OSError as error:
            raise UserError(f"wandb: {address} cannot be reached ({error.strerror or error}); {rest}") from None
    return address


def _read_marker(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
