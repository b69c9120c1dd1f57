"""GLUE (Wang et al. 2018), and the embedded sub-tasks that stand in for it where there is no network.

Data, splits and formats are in ``lrx.data.glue``; the official metrics in ``lrx.tasks.metrics``. Reported is GLUE's
validation split, as in the papers (the test labels are hidden), and the embedded corpus's own test split.

Model selection uses a held-out share of the training split (``holdout``), so that no reported number was selected on.
The papers select on the validation split itself: ``holdout=0`` does that, and the task says so in
``selects_on_reported``. The embedded corpus has a fixed selection split; ``holdout`` does not concern it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from lrx import warm
from lrx.data import embedded, glue
from lrx.data.glue_spec import Spec
from lrx.data.loader import Batches, EpochBatches, Positions, ResumableLoader, evaluation_loader
from lrx.data.splits import Split, hold_out, limit
from lrx.errors import UserError
from lrx.models.base import Backbone, Inputs, Outputs
from lrx.seeds import derive
from lrx.tasks.base import Suite, Task
from lrx.tasks.metrics import compute
from lrx.tasks.text import Encoded, encode


class Glue(Suite):
    """The nine GLUE tasks from local files or the hub, or three embedded ones.

    Arguments:
        source: ``embedded`` (sentiment, intensity, domain), ``local`` (original TSV folders) or ``hub``.
        data_dir: for ``local``, the folder of all tasks or of the one asked for.
        subset: a sub-task or a list; None for all of ``embedded``, all found in ``data_dir``, or on the hub the eight
            that papers average.
        batch_size, eval_batch_size: examples per batch and process.
        group_by_length: examples of similar length share a training batch, which saves padding.
        max_length: tokens of an example; longer ones are cut and counted in ``Task.notes``.
        holdout: share of the training split kept for model selection, at most 2,000 examples; 0 selects on the
            reported split.
        train_limit, eval_limit: a fixed sample of the training and of every scored split; None for all of it.
        revision: of the hub's repository; None for the fixed one.
        cola_metric: which of CoLA's two metrics selects and fills the table: the official one, or accuracy as in the
            tables of LoRA-GA and AltLoRA. Both are always computed.
        workers: processes that collate batches.
    """

    name: ClassVar[str] = "glue"
    version: ClassVar[int] = 1

    def __init__(
        self,
        *,
        source: Literal["embedded", "local", "hub"] = "embedded",
        data_dir: str | None = None,
        subset: str | list[str] | None = None,
        batch_size: int = 32,
        eval_batch_size: int = 128,
        group_by_length: bool = False,
        max_length: int = 128,
        holdout: float = 0.1,
        train_limit: int | None = None,
        eval_limit: int | None = None,
        revision: str | None = None,
        cola_metric: Literal["matthews_correlation", "accuracy"] = "matthews_correlation",
        workers: int = 0,
    ) -> None:
        self.options: dict[str, Any] = {
            "source": source,
            "data_dir": data_dir,
            "subset": subset,
            "batch_size": batch_size,
            "eval_batch_size": eval_batch_size,
            "group_by_length": group_by_length,
            "max_length": max_length,
            "holdout": holdout,
            "train_limit": train_limit,
            "eval_limit": eval_limit,
            "revision": revision,
            "cola_metric": cola_metric,
            "workers": workers,
        }

    def parts(self) -> list[Task]:
        """The sub-tasks of ``subset`` in order. Raises ``UserError`` for a name that does not exist."""
        return [GlueTask(glue.spec(name), self.options) for name in glue.resolve(self.options)]


class GlueTask(Task):
    """One sub-task. Files are read and tokenised when first needed, so scoring needs no training file.

    ``unlabelled``: test splits with hidden labels, for a submission. ``notes``: counts of cut and empty texts and
    skipped lines, by split, of what has been read so far.
    """

    def __init__(self, spec: Spec, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.spec = spec
        self.options = dict(options)
        self.name = spec.name
        self.metrics = spec.metrics
        self.primary = options["cola_metric"] if spec.name == "cola" else spec.metrics[0]
        self.higher_is_better = dict.fromkeys(spec.metrics, True)
        self.inputs = Inputs("text", max_length=options["max_length"])
        self.outputs = Outputs(spec.kind, len(spec.classes) or 1, spec.words, spec.instruction)
        self.reported = spec.reported
        self.unlabelled = spec.unlabelled
        self.selects_on_reported = options["source"] != "embedded" and options["holdout"] == 0
        self.notes: dict[str, int] = {}
        self._splits: dict[str, Split] = {}
        self._encoded: dict[str, Encoded] = {}
        self._tokenizer: Any = None
        self._reads = ""
        self._seed = 0

    def bind(self, backbone: Backbone, seed: int) -> None:
        """Set the tokenizer and the seed of the batch order. Raises ``UserError`` for a model that cannot serve."""
        if backbone.tokenizer is None:
            raise UserError(f"task {self.name} is text; this model reads none")
        if backbone.reads == "text_to_text" and self.spec.kind == "regression":
            raise UserError(f"task {self.name} is a regression; a text-to-text model answers with the words of classes")
        self._tokenizer, self._reads = backbone.tokenizer, backbone.reads
        self._seed = derive(seed, "data", self.name)
        self._encoded.clear()

    def split(self, name: str) -> Split:
        """The texts and labels of ``train``, ``select``, a reported or an unlabelled split."""
        if name not in self._splits:
            self._read(name)
        return self._splits[name]

    def _read(self, name: str) -> None:
        if name == "select" and self.selects_on_reported:
            self._splits[name] = self.split(self.reported[0])
            return
        if name not in {"train", "select", *self.reported, *self.unlabelled}:
            raise KeyError(f"{self.name} has no split {name!r}")
        options = self.options
        embedded = options["source"] == "embedded"
        source = [options[key] for key in ("source", "data_dir", "revision", "holdout", "train_limit", "eval_limit")]
        found = warm.keep(("glue", self.name, name, *source), lambda: self._load(name, embedded))
        for key, split in found.items():
            self._splits[key] = split
            self.notes.update({f"{key}.{what}": count for what, count in split.notes.items()})

    def _load(self, name: str, embedded: bool) -> dict[str, Split]:
        """The split, and the other one of ``train`` and ``select`` where they come from one file."""
        options = self.options
        if name in {"train", "select"} and not embedded:
            train, select = hold_out(glue.load(options, self.name, "train"), options["holdout"])
            if not len(train):
                raise UserError(f"task.holdout={options['holdout']} leaves no training example of {self.name}")
            found = {"train": train} if self.selects_on_reported else {"train": train, "select": select}
        else:
            found = {name: glue.load(options, self.name, name)}
        most = {"train": options["train_limit"]} | dict.fromkeys(self.unlabelled)
        return {key: limit(split, most.get(key, options["eval_limit"])) for key, split in found.items()}

    def _tokens(self, name: str) -> Encoded:
        if name not in self._encoded:
            instruction = self.spec.instruction if self._reads == "text_to_text" else None
            self._encoded[name], notes = encode(
                self.split(name),
                self._tokenizer,
                self.inputs.max_length,
                instruction=instruction,
                regression=self.spec.kind == "regression",
            )
            self.notes.update({f"{name}.{what}": count for what, count in notes.items()})
        return self._encoded[name]

    def size(self, split: str) -> int:
        """Number of examples of a split."""
        return len(self.split(split))

    def train_dataloader(self) -> DataLoader:  # type: ignore[override]
        encoded = self._tokens("train")
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        lengths = encoded.lengths if self.options["group_by_length"] else None
        batches = EpochBatches(len(encoded), self.options["batch_size"], self._seed, rank, world, lengths)
        return ResumableLoader(Positions(len(encoded), encoded.collate), batches, self.options["workers"])

    def eval_dataloader(self, split: str) -> DataLoader:
        """Every example of a split once, similar lengths together; ``index`` restores the file order."""
        encoded = self._tokens(split)
        batches = Batches(encoded.lengths, self.options["eval_batch_size"])
        return evaluation_loader(Positions(len(encoded), encoded.collate), batches, self.options["workers"])

    def loss(self, backbone: Backbone, batch: dict[str, Any]) -> Tensor:
        """The model's own loss, or cross-entropy (classes) or mean squared error (regression) in float32."""
        own = backbone.loss(batch)
        if own is not None:
            return own
        outputs = backbone(batch).float()
        if self.spec.kind == "regression":
            return F.mse_loss(outputs.squeeze(-1), batch["labels"].float())
        return F.cross_entropy(outputs, batch["labels"])

    def predict(self, outputs: Tensor) -> Tensor:
        """(batch, size) -> (batch,): class ids int64, or values float64. A row with a NaN is -1, which is no class."""
        if self.spec.kind == "regression":
            return outputs[:, 0].double()
        broken = outputs.isnan().any(dim=1)
        return outputs.argmax(dim=1).masked_fill(broken, -1)

    def score(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        """The official metrics of the sub-task over a whole split."""
        return compute(self.metrics, predictions, references)

    def groups(self, split: str) -> list[int] | None:
        """Sentences of one document of the embedded corpus belong together; GLUE's files name no documents."""
        return embedded.documents(self.split(split).ids) if self.options["source"] == "embedded" else None

    def write_submission(self, folder: Path, predictions: Mapping[str, np.ndarray]) -> list[str]:
        """Write ``predictions[test split]`` as the leaderboard wants them; the names of the files written."""
        found = {split: values.tolist() for split, values in predictions.items()}
        return [path.name for path in glue.write_submission(folder, {self.name: found})[0]]
