"""GSM8K (Cobbe et al. 2021): grade-school word problems, scored by the final number of a written solution.

Data, splits and prompts are in ``lrx.data.gsm8k``; the rules of extraction, each as its authors wrote it, in
``lrx.data.gsm8k_extract``. Where there is no network, problems of the same style are generated; scores on those are no
GSM8K scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np

from lrx.data import gsm8k
from lrx.data.completions import Completions
from lrx.data.gsm8k_extract import reported, verdicts
from lrx.data.gsm8k_prompts import FORMATS
from lrx.errors import UserError
from lrx.models.base import Backbone, Decoding
from lrx.tasks.base import Suite, Task
from lrx.tasks.completion import CompletionTask


class Gsm8k(Suite):
    """GSM8K from local files or the hub, or generated problems. Loss on the solution only, greedy generation.

    Arguments:
        source: ``embedded`` (generated problems), ``local`` (train.jsonl and test.jsonl) or ``hub``.
        data_dir: for ``local``, the folder of the files.
        train_data: ``gsm8k``, or ``metamath`` (MetaMathQA) as the papers on 7B models do; the test is GSM8K either way.
        metamath_types: ``gsm`` keeps MetaMathQA's rows that were made from GSM8K, as LoRA-GA does; ``all``: those made
            from MATH too.
        train_first: the first so many training examples, as papers take them; None for all.
        templates: for ``embedded``, the first so many templates, easiest first (at most 81).
        prompt: format of the prompts (``lrx.data.gsm8k_prompts``).
        eval_prompt: another format for the scored split; None for the same.
        few_shot: worked examples in front of each scored prompt; ``max_length`` has to leave room for them.
        shots: where they come from: ``cot`` (the eight fixed ones of chain-of-thought prompting) or ``train``.
        ending: how a solution ends: ``as_is``, ``hashes`` (#### N), ``metamath`` (and The answer is: N), ``cot``
            (The answer is N.), ``llama`` (The final answer is N).
        calculator_marks: whether the marks ``<<3*4=12>>`` are kept in the solutions.
        extract: the rule whose metric fills the table: official, strict, flexible, cot, llama, lorasb, lorasb_equal,
            loraga. Official, strict and flexible are always reported.
        max_new_tokens: of a generated solution.
        batch_size, eval_batch_size: examples per batch and process.
        group_by_length: examples of similar length share a training batch, which saves padding.
        max_length: tokens of prompt and solution; longer training examples are left out and counted.
        label_smoothing: of the training loss.
        holdout: share of the training data kept for model selection, at most 1,000; 0 selects on the reported split.
        train_limit, select_limit, eval_limit: a fixed sample of a split; None for all of it.
        revision: of openai/gsm8k on the hub; None for the fixed one.
        workers: processes that collate batches.
    """

    name: ClassVar[str] = "gsm8k"
    version: ClassVar[int] = 1

    def __init__(
        self,
        *,
        source: Literal["embedded", "local", "hub"] = "embedded",
        data_dir: str | None = None,
        train_data: Literal["gsm8k", "metamath"] = "gsm8k",
        metamath_types: Literal["gsm", "all"] = "gsm",
        train_first: int | None = None,
        templates: int = 10,
        prompt: str = "harness",
        eval_prompt: str | None = None,
        few_shot: int = 0,
        shots: Literal["cot", "train"] = "cot",
        ending: Literal["as_is", "hashes", "metamath", "cot", "llama"] = "as_is",
        calculator_marks: Literal["strip", "keep"] = "strip",
        extract: str = "official",
        max_new_tokens: int = 256,
        batch_size: int = 16,
        eval_batch_size: int = 64,
        group_by_length: bool = False,
        max_length: int = 512,
        label_smoothing: float = 0.0,
        holdout: float = 0.05,
        train_limit: int | None = None,
        select_limit: int | None = None,
        eval_limit: int | None = None,
        revision: str | None = None,
        workers: int = 0,
    ) -> None:
        self.options: dict[str, Any] = {
            "source": source,
            "data_dir": data_dir,
            "train_data": train_data,
            "metamath_types": metamath_types,
            "train_first": train_first,
            "templates": templates,
            "prompt": prompt,
            "eval_prompt": eval_prompt,
            "few_shot": few_shot,
            "shots": shots,
            "ending": ending,
            "calculator_marks": calculator_marks,
            "extract": extract,
            "max_new_tokens": max_new_tokens,
            "batch_size": batch_size,
            "eval_batch_size": eval_batch_size,
            "group_by_length": group_by_length,
            "max_length": max_length,
            "label_smoothing": label_smoothing,
            "holdout": holdout,
            "train_limit": train_limit,
            "select_limit": select_limit,
            "eval_limit": eval_limit,
            "revision": revision,
            "workers": workers,
        }

    def parts(self) -> list[Task]:
        """The one part."""
        return [Gsm8kTask(self.options)]


class Gsm8kTask(CompletionTask):
    """Problems as prompts, solutions as answers; a prediction is right or wrong by each rule of extraction."""

    reported = ("test",)

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.rules = reported(options["extract"])
        form = FORMATS[options["eval_prompt"] or options["prompt"]]
        decoding = Decoding(max_new_tokens=options["max_new_tokens"], stop=form.stop)
        super().__init__("gsm8k", {**options, "end_of_prompt": ""}, decoding)
        self.primary = self.rules[0].metric
        self.higher_is_better = {rule.metric: True for rule in self.rules} | {"loss": False}
        self.selects_on_reported = options["source"] != "embedded" and options["holdout"] == 0

    def bind(self, backbone: Backbone, seed: int) -> None:
        """As ``CompletionTask.bind``. Raises ``UserError`` when worked examples leave no room for most questions."""
        super().bind(backbone, seed)
        if (shots := self.options["few_shot"]) and "test" in self.reported:  # a trial has no reported split
            found = self._tokens("test")  # now, not after the training
            if (cut := found.notes["cut_prompt"]) > len(found) / 2:
                raise UserError(
                    f"task.few_shot={shots}: {cut} of {len(found)} prompts have more than "
                    f"task.max_length={self.inputs.max_length} tokens and would lose their examples; raise it"
                )

    def load(self, split: str) -> Completions:
        """The problems of ``train``, ``select`` or ``test`` as prompts and answers; references are the gold numbers."""
        return gsm8k.completions(self.options, split)

    def item_scores(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, np.ndarray]:
        """(n,) float64 of 0 and 1 per metric: whether each completion is right by its rule."""
        pairs = [str(text) for text in predictions], [str(number) for number in references]
        return {rule.metric: np.array(verdicts(rule, *pairs), dtype=np.float64) for rule in self.rules}

    def score(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        """The share of right completions by every rule, from 0 to 1."""
        return {metric: float(values.mean()) for metric, values in self.item_scores(predictions, references).items()}
