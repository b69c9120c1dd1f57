"""Tables whose rows have a run for each part at each seed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from lrx.errors import UserError
from lrx.results import collect, compare
from lrx.results.cells import cell_text
from lrx.results.record import RunRecord
from lrx.results.sweep import Column, Row
from tests.results.fakes import FakeJob, record_of


def test_a_row_may_have_a_run_for_each_part() -> None:
    """``parts_by``: two runs of a row at one seed, each with a part; a failed one takes nothing from the other."""

    @dataclasses.dataclass(frozen=True)
    class PartJob(FakeJob):
        part: str = ""

        @property
        def fingerprint(self) -> str:
            return f"{super().fingerprint}-{self.part}"

        @property
        def config(self) -> dict[str, Any]:
            config = super().config
            return {**config, "task": {**config["task"], "dataset": self.part}}

    def record(job: PartJob) -> RunRecord:
        whole = record_of(job)
        cost = {**whole.cost, "wall_seconds": {"sentiment": 10.0, "domain": 30.0}[job.part]}
        parts = {job.part: whole.parts[job.part]}
        return dataclasses.replace(whole, run_id=job.fingerprint, parts=parts, cost=cost)

    jobs = [PartJob(m, seed, part=p) for m in ("lora", "head") for seed in range(3) for p in ("sentiment", "domain")]
    records = {job.fingerprint: record(job) for job in jobs}
    lost = PartJob("lora", 2, part="domain").fingerprint
    records[lost] = dataclasses.replace(records[lost], status="diverged", parts={})
    rows = [Row(key=m, label=m, method=m) for m in ("lora", "head")]
    columns = [Column(key=p, label=p, part=p, metric="accuracy") for p in ("sentiment", "domain")]
    columns.append(Column(key="mean", label="mean", mean_of=["sentiment", "domain"]))
    joined = collect.join(rows, columns, jobs, list(records.values()), parts_by="task.dataset")
    lora, head = joined.lines
    assert {c.key: joined.cell(lora, c).n for c in columns} == {"sentiment": 3, "domain": 2, "mean": 2}
    assert {c.key: joined.cell(head, c).n for c in columns} == {"sentiment": 3, "domain": 3, "mean": 3}
    both = [record_of(FakeJob("head", 1)).parts[p].metrics["test"]["accuracy"] for p in ("sentiment", "domain")]
    assert joined.cell(head, columns[2]).values[1] == pytest.approx(100 * sum(both) / 2)
    assert head.cost("wall_seconds").values == {0: 20.0, 1: 20.0, 2: 20.0}
    assert set(lora.cost("wall_seconds").values) == {0, 1}  # at seed 2 a run is missing from the mean
    left_out = compare.left_out
    assert left_out(joined, lora, head, columns[0]) == ()
    assert left_out(joined, lora, head, columns[1]) == ("lora diverged at seed 2",)
    assert str(cell_text(joined.cell(lora, columns[1]), joined.only(lora, columns[1]), 1)).endswith("(2)")
    with pytest.raises(UserError, match="two jobs with seed 0"):
        collect.join(rows, columns, jobs, [])
