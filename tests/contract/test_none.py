"""method=none: the backbone as it is, scored and recorded without a step."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from tests.contract.runs import Run, one_line, part_folder, the_record


def test_the_backbone_as_it_is(run: Run, tmp_path: Path) -> None:
    run("method=none")
    record = the_record(tmp_path)
    part = record.parts["sentiment"]
    assert (record.status, part.steps, part.best_step, record.cost["trainable_parameters"]) == ("finished", 0, 0, 0)
    assert set(part.metrics) == {"test", "select"}
    assert part.curve == [{"step": 0, "splits": part.metrics}]
    assert load_file(part_folder(tmp_path) / "adapter.safetensors") == {}
    first = (part_folder(tmp_path) / "predictions.test.csv").read_text()
    assert "every metric equals the record" in run("method=none", "mode=eval").out
    run("method=head", "trainer.max_steps=0", root=tmp_path / "head")  # a method that has not trained yet is the same
    assert (part_folder(tmp_path / "head") / "predictions.test.csv").read_text() == first


def test_what_makes_no_sense_is_said(run: Run, tmp_path: Path) -> None:
    one_line(run("method=none", "+method.lr=1e-3", code=2), "method.lr", "none")
    one_line(run("method=none", "callbacks=lens", code=2), "callbacks=lens", "method=none changes no matrix")
