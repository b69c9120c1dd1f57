"""Whole runs: what they leave is exported and read by peft and transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.contract.runs import (
    Run,
    part_folder,
    the_record,
    weights,
)


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
