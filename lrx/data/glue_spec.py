"""What the tasks of GLUE are: columns, classes in id order, files, official metrics, sizes; and the embedded sub-tasks.

Wang et al. 2018 (GLUE). Class ids, splits and sizes as in the hub's copy ``nyu-mll/glue``; columns and files as in the
original TSV folders; instructions and words of the text-to-text form as in the scripts of LoRA-GA (the AltLoRA table's
protocol), with "classify the semantic similarity of the text" also for RTE and WNLI, which those scripts leave out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

SIMILARITY = "classify the semantic similarity of the text: "


@dataclass(frozen=True)
class Spec:
    """One task. ``classes``: names in id order, none for regression.

    ``files``: split -> file in ``folder``. ``columns`` and ``label``: names in the TSV header; ``headerless``: files
    that have none, with the columns to assume. ``labels``: the label's spelling in the TSV for each class id.
    ``hub_columns``: names in the hub's copy. ``metrics``: official names, the selecting one first. ``bounds``: range of
    a regression label. ``short_lines``: broken lines allowed per line read (see QQP). ``submission``: split -> file of
    the leaderboard's archive. ``sizes``: split -> published number of examples.
    """

    name: str
    folder: str
    columns: tuple[str, ...]
    hub_columns: tuple[str, ...]
    label: str
    classes: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    submission: dict[str, str]
    sizes: dict[str, int]
    words: tuple[str, ...] = ()
    instruction: str = ""
    files: dict[str, str] = field(
        default_factory=lambda: {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}
    )
    reported: tuple[str, ...] = ("validation",)
    unlabelled: tuple[str, ...] = ("test",)
    headerless: dict[str, tuple[str, ...]] = field(default_factory=dict)
    bounds: tuple[float, float] | None = None
    short_lines: float = 0.0

    @property
    def kind(self) -> Literal["classes", "regression"]:
        return "classes" if self.classes else "regression"


def _spec(name: str, folder: str, train: int, validation: int, test: int, **options: object) -> Spec:
    defaults: dict[str, object] = {
        "label": "label",
        "hub_columns": options["columns"],
        "labels": ("0", "1"),
        "metrics": ("accuracy",),
        "submission": {"test": f"{folder}.tsv"},
        "sizes": {"train": train, "validation": validation, "test": test},
        "words": options.get("classes", ()),
    }
    return Spec(name, folder, **{**defaults, **options})  # type: ignore[arg-type]


_PAIR = ("sentence1", "sentence2")
_NLI2 = ("entailment", "not_entailment")
_NLI3 = ("entailment", "neutral", "contradiction")
_COLA = ("source", "label", "mark", "sentence")

GLUE: dict[str, Spec] = {
    spec.name: spec
    for spec in (
        _spec(
            "cola", "CoLA", 8551, 1043, 1063, columns=("sentence",), classes=("unacceptable", "acceptable"),
            headerless={"train": _COLA, "validation": _COLA}, metrics=("matthews_correlation", "accuracy"),
            instruction="classify the grammaticality of the text: ",
        ),
        _spec(
            "sst2", "SST-2", 67349, 872, 1821, columns=("sentence",), classes=("negative", "positive"),
            instruction="classify the sentiment of the text: ",
        ),
        _spec(
            "mrpc", "MRPC", 3668, 408, 1725, columns=("#1 String", "#2 String"), hub_columns=_PAIR, label="Quality",
            classes=("not_equivalent", "equivalent"), words=("different", "equivalent"),
            metrics=("accuracy", "f1"), instruction=SIMILARITY,
        ),
        _spec(
            "stsb", "STS-B", 5749, 1500, 1379, columns=_PAIR, label="score", classes=(), labels=(), bounds=(0.0, 5.0),
            metrics=("pearson", "spearman"),
        ),
        _spec(
            # Questions with a line break inside left a few broken lines in the published train.tsv; the official
            # reader drops them. More than 1 in 2,000 is damage.
            "qqp", "QQP", 363846, 40430, 390965, columns=("question1", "question2"), label="is_duplicate",
            classes=("not_duplicate", "duplicate"), words=("different", "duplicate"),
            metrics=("accuracy", "f1"), instruction=SIMILARITY, short_lines=1 / 2000,
        ),
        _spec(
            "mnli", "MNLI", 392702, 9815, 9796, columns=_PAIR, hub_columns=("premise", "hypothesis"),
            label="gold_label", classes=_NLI3, labels=_NLI3, instruction=SIMILARITY,
            files={
                "train": "train.tsv", "validation_matched": "dev_matched.tsv",
                "validation_mismatched": "dev_mismatched.tsv", "test_matched": "test_matched.tsv",
                "test_mismatched": "test_mismatched.tsv",
            },
            reported=("validation_matched", "validation_mismatched"),
            unlabelled=("test_matched", "test_mismatched", "ax"),
            submission={"test_matched": "MNLI-m.tsv", "test_mismatched": "MNLI-mm.tsv", "ax": "AX.tsv"},
            sizes={
                "train": 392702, "validation_matched": 9815, "validation_mismatched": 9832,
                "test_matched": 9796, "test_mismatched": 9847, "ax": 1104,
            },
        ),
        _spec(
            "qnli", "QNLI", 104743, 5463, 5463, columns=("question", "sentence"), classes=_NLI2, labels=_NLI2,
            instruction="classify the semantic similarity of the question and the sentence: ",
        ),
        _spec("rte", "RTE", 2490, 277, 3000, columns=_PAIR, classes=_NLI2, labels=_NLI2, instruction=SIMILARITY),
        _spec(
            "wnli", "WNLI", 635, 71, 146, columns=_PAIR, classes=("not_entailment", "entailment"),
            instruction=SIMILARITY,
        ),
    )
}  # fmt: skip

# The diagnostic set, which a model of MNLI answers: in its own folder locally, the config ``ax`` on the hub.
AX = Spec(
    "ax", "diagnostic", _PAIR, ("premise", "hypothesis"), "label", _NLI3, _NLI3, ("matthews_correlation",),
    {"test": "AX.tsv"}, {"test": 1104}, files={"test": "diagnostic.tsv"}, reported=(),
)  # fmt: skip

_SENTIMENT = "classify the sentiment of the text: "
EMBEDDED: dict[str, Spec] = {
    spec.name: spec
    for spec in (
        _spec(
            "sentiment", "", 0, 0, 0, columns=("text",), classes=("negative", "positive"), instruction=_SENTIMENT,
            reported=("test",), unlabelled=(), submission={}, files={}, sizes={},
        ),
        _spec(
            "intensity", "", 0, 0, 0, columns=("text",), classes=(), labels=(), bounds=(-4.0, 4.0),
            metrics=("pearson", "spearman"), reported=("test",), unlabelled=(), submission={}, files={}, sizes={},
        ),
        _spec(
            "domain", "", 0, 0, 0, columns=("text",), classes=("film", "product", "editorial", "tweet"),
            instruction="classify the source of the text: ",
            reported=("test",), unlabelled=(), submission={}, files={}, sizes={},
        ),
    )
}  # fmt: skip


def spec(subset: str) -> Spec:
    """The task called ``subset``, of GLUE or embedded."""
    return GLUE[subset] if subset in GLUE else EMBEDDED[subset]
