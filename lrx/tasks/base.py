"""The contract of a task. A benchmark (``Suite``) has one or more parts; each part (``Task``) is trained on its own.

Splits have roles: ``train`` is trained on; ``select`` serves model selection (best checkpoint, early stopping,
tuning); every split in ``reported`` is scored once, at the end. They are disjoint unless the task says that its
protocol selects on the reported split (``selects_on_reported``), and then the record says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytorch_lightning as pl
from torch import Tensor
from torch.utils.data import DataLoader

from lrx.models.base import Backbone, Inputs, Outputs


class Task(pl.LightningDataModule):
    """One part of a benchmark, e.g. RTE of GLUE.

    ``name``: the part's name in records and tables. ``primary``: the metric that fills a table's cell; ``selector``:
    the one that selects models, where it is another (an answer's loss costs less than its generation);
    ``higher_is_better``: metric -> direction; ``unlabelled``: test splits with hidden labels, for a submission;
    ``notes``: counts of irregular examples.
    """

    name: str
    primary: str
    selector: str = ""
    higher_is_better: Mapping[str, bool]
    inputs: Inputs
    outputs: Outputs
    reported: Sequence[str]
    selects_on_reported: bool = False
    unlabelled: Sequence[str] = ()
    notes: Mapping[str, float] = {}

    def bind(self, backbone: Backbone, seed: int) -> None:
        """Tokenise for this backbone; batch order becomes a pure function of (``seed``, epoch)."""
        raise NotImplementedError

    def size(self, split: str) -> int:
        """Number of examples of a split (``train``, ``select`` or one of ``reported``); 0 if there is none."""
        raise NotImplementedError

    def train_dataloader(self) -> DataLoader:  # type: ignore[override]
        """Training batches in the order of the epoch; resumable in mid-epoch (``lrx.data.loader``)."""
        raise NotImplementedError

    def eval_dataloader(self, split: str) -> DataLoader:
        """Every example of a split once; ``index`` (batch,) in a batch is each one's place in the file order."""
        raise NotImplementedError

    def loss(self, backbone: Backbone, batch: dict[str, Any]) -> Tensor:
        """Scalar training loss of a batch."""
        raise NotImplementedError

    def infer(self, backbone: Backbone, batch: dict[str, Any]) -> np.ndarray:
        """Predictions (batch,) of a batch; texts are objects. The modules are in evaluation mode, without gradients."""
        return self.predict(backbone(batch)).cpu().numpy()

    def predict(self, outputs: Tensor) -> Tensor:
        """Model outputs (batch, size) -> predictions (batch,): class ids (int64) or values (float64)."""
        raise NotImplementedError

    def score(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        """The official metrics over a whole split, in float64."""
        raise NotImplementedError

    def references(self, split: str) -> np.ndarray | None:
        """What the predictions of a split are held against (n,); None where its batches have it as ``labels``."""
        return None

    def measure(self, split: str, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        """The metrics of a split: the official ones, unless ``select`` is measured by another."""
        return self.score(predictions, references)

    def item_scores(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, np.ndarray]:
        """For metrics that are means over items and cannot be computed from two numbers: their values (n,)."""
        return {}

    def tracked(self) -> Sequence[str]:
        """The reported splits that are scored at every evaluation during training, for the curve."""
        return self.reported

    def groups(self, split: str) -> list[int] | None:
        """For each example of a split the number of the document that it is from; None where each is its own."""
        return None

    def pictures(self, backbone: Backbone, folder: Path) -> dict[str, Path]:
        """Pictures of what the reported weights do, written into ``folder`` at the end of a run: name -> file."""
        return {}

    def write_submission(self, folder: Path, predictions: Mapping[str, np.ndarray]) -> list[str]:
        """Write predictions of the ``unlabelled`` splits in the leaderboard's format; the names of the files."""
        return []


class Suite:
    """A benchmark as the command line names it: ``task=glue`` with the parts that ``task.subset`` chose."""

    name: ClassVar[str]
    version: ClassVar[int] = 1

    def parts(self) -> list[Task]:
        """The parts of this run, in order."""
        raise NotImplementedError
