"""``python -m lrx export RECORD``: the trained weights of a run in PEFT's format, or merged into the backbone."""

from __future__ import annotations

from pathlib import Path

from lrx.errors import UserError
from lrx.experiment import build_suite, quiet_libraries
from lrx.methods.export import to_merged, to_peft
from lrx.models.weights import resolve
from lrx.rescore import read_weights
from lrx.results.record import read
from lrx.schema import Settings, validate
from lrx.training import assemble


def export_record(path: Path, form: str, out: Path | None = None) -> list[Path]:
    """Write each part of the run recorded at ``path`` below ``out`` (default: beside the run's weights).

    ``form``: ``peft`` (``adapter_config.json`` + ``adapter_model.safetensors``) or ``merged`` (a transformers folder).
    Returns the folders written. Raises ``UserError`` when the run is unfinished, its weights are gone, or the method
    has no such form.
    """
    record = read(path)
    if record.status != "finished":
        raise UserError(f"{path}: the run is {record.status}; only a finished run can be exported")
    quiet_libraries()
    settings = validate(record.config)
    run_folder = path.resolve().parent.parent / "runs" / record.run_id
    written = []
    for task in build_suite(settings).parts():
        weights = run_folder / task.name / "adapter.safetensors"
        state = read_weights(weights)
        backbone, method = assemble(task, settings)
        if form == "peft" and method.peft_form is None:
            instead = "use --format merged" if method.mergeable else f"nor can it be merged; its weights: {weights}"
            raise UserError(f"method {record.method!r} is no plain LoRA, PEFT cannot load it; {instead}")
        if form == "merged" and not method.mergeable:
            raise UserError(f"method {record.method!r} cannot be merged into plain weights; its own: {weights}")
        method.load_adapter(backbone, state)
        folder = (out or run_folder / f"export-{form}") / task.name
        if form == "peft":
            to_peft(method, backbone, folder, _base_model(settings))
        else:
            to_merged(method, backbone, folder)
        written.append(folder)
    return written


def _base_model(settings: Settings) -> str | None:
    """What ``from_pretrained`` reads the backbone by: a hub name or a folder; None where it has random weights."""
    path = settings.model.get("path")
    if path is None or settings.model["weights"] == "hub":
        return path
    return str(Path(resolve(settings.model["weights"], path)[0]).resolve())
