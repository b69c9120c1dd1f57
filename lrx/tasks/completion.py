"""Tasks in which a model writes an answer after a prompt: trained on the answer's tokens, scored on what it writes.

Training batches are padded on the right, prompts for generation on the left. Models are selected by the mean loss of
the answers' tokens on the selection split, which costs one pass; the reported splits are generated once, at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lrx import warm
from lrx.data.completions import Completions
from lrx.data.loader import Batches, EpochBatches, Positions, ResumableLoader, evaluation_loader
from lrx.data.store import Arrays, stored
from lrx.errors import UserError
from lrx.models.base import Backbone, Decoding, Inputs, Outputs
from lrx.seeds import derive
from lrx.tasks.base import Task
from lrx.tasks.text import tokenizer_digest

IGNORED = -100  # what PyTorch's cross-entropy leaves out


class CompletionTask(Task):
    """Prompts and answers of one benchmark. A subclass gives ``load``, ``score`` and the attributes of ``Task``.

    ``options``: ``batch_size``, ``eval_batch_size``; ``max_length``, tokens of prompt and answer: a longer training
    example is left out, a longer prompt loses its beginning, both counted in ``notes``; ``train_limit``,
    ``select_limit``, ``eval_limit``: fixed samples; ``group_by_length``; ``label_smoothing``; ``end_of_prompt``:
    ``"eos"`` puts the end token between prompt and answer; ``workers``.
    """

    selector = "loss"

    def __init__(self, name: str, options: Mapping[str, Any], decoding: Decoding) -> None:
        super().__init__()
        self.name = name
        self.options = dict(options)
        self.decoding = decoding
        self.inputs = Inputs("text", max_length=options["max_length"])
        self.outputs = Outputs("text")
        self.notes: dict[str, int] = {}
        self._splits: dict[str, Completions] = {}
        self._encoded: dict[str, EncodedCompletions] = {}
        self._tokenizer: Any = None
        self._seed = 0

    def load(self, split: str) -> Completions:
        """All examples of ``train``, ``select`` or a reported split."""
        raise NotImplementedError

    def bind(self, backbone: Backbone, seed: int) -> None:
        """Set the tokenizer and the seed of the batch order.

        Raises ``UserError`` for a model that writes no text, or has too few positions for prompts and answers.
        """
        if backbone.reads != "causal" or backbone.tokenizer is None:
            raise UserError(f"task {self.name} needs a causal language model, which continues a prompt")
        self._tokenizer = backbone.tokenizer
        self._seed = derive(seed, "data", self.name)
        self._encoded.clear()
        if backbone.positions is not None:
            self._check_room(backbone.positions)

    def _check_room(self, positions: int) -> None:
        """Whether all fits into ``positions`` tokens: now, not after the training."""
        longest, new = self.inputs.max_length, self.decoding.max_new_tokens
        if longest > positions:
            raise UserError(f"task.max_length={longest}: this model has {positions} positions; give at most that")
        if longest + new - 1 <= positions:
            return
        for split in self.reported:
            if (most := max(self._tokens(split).lengths)) + new - 1 > positions:  # the last token is not read
                raise UserError(
                    f"task {self.name}: {most} tokens of a prompt of {split} and task.max_new_tokens={new} do not fit "
                    f"into the {positions} positions of this model; give less of either (task.max_length, "
                    "which cuts prompts)"
                )

    def split(self, name: str) -> Completions:
        """The examples of a split, as many as its limit allows."""
        if name not in self._splits:
            key = ("completions", self.name, name, repr(sorted(self.options.items())))
            limits = {"train": "train_limit", "select": "select_limit"}
            limit = self.options[limits.get(name, "eval_limit")]
            self._splits[name] = warm.keep(key, lambda: self.load(name).limit(limit))
            self.notes.update({f"{name}.{what}": count for what, count in self._splits[name].notes.items()})
        return self._splits[name]

    def size(self, split: str) -> int:
        """Number of examples of a split; once tokenised, of those that are used."""
        return len(self._encoded[split]) if split in self._encoded else len(self.split(split))

    def _tokens(self, name: str) -> EncodedCompletions:
        if name not in self._encoded:
            answered = name in {"train", "select"}
            separator = self.options["end_of_prompt"] == "eos"
            found = encode(self.split(name), self._tokenizer, self.inputs.max_length, answered, separator)
            if not len(found):
                raise UserError(
                    f"task {self.name}: no example of {name} has an answer that fits into "
                    f"task.max_length={self.inputs.max_length} tokens"
                )
            self._encoded[name] = found
            self.notes.update({f"{name}.{what}": count for what, count in found.notes.items() if count})
        return self._encoded[name]

    def train_dataloader(self) -> DataLoader:  # type: ignore[override]
        encoded = self._tokens("train")
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        lengths = encoded.lengths if self.options["group_by_length"] else None
        batches = EpochBatches(len(encoded), self.options["batch_size"], self._seed, rank, world, lengths)
        return ResumableLoader(Positions(len(encoded), encoded.collate), batches, self.options["workers"])

    def eval_dataloader(self, split: str) -> DataLoader:
        """Every example once, similar lengths together: with its answer of ``select``, else the prompt alone."""
        encoded = self._tokens(split)
        batches = Batches(encoded.lengths, self.options["eval_batch_size"])
        return evaluation_loader(Positions(len(encoded), encoded.collate), batches, self.options["workers"])

    def loss(self, backbone: Backbone, batch: dict[str, Any]) -> Tensor:
        """Mean cross-entropy of the answers' tokens in float32, the end token included."""
        return backbone.token_losses(batch, self.options["label_smoothing"]).mean()

    def infer(self, backbone: Backbone, batch: dict[str, Any]) -> np.ndarray:
        """With answers: their (loss, tokens) (batch, 2); else the texts (batch,) that the model writes."""
        if "labels" in batch:
            known = batch["labels"] != IGNORED
            losses = torch.zeros(known.shape, dtype=torch.float64, device=known.device)
            losses[known] = backbone.token_losses(batch).double()
            return torch.stack([losses.sum(dim=1), known.sum(dim=1)], dim=1).cpu().numpy()
        written = backbone.generate(batch, self.decoding).tolist()
        texts = np.empty(len(written), dtype=object)
        for row, tokens in enumerate(written):
            text = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            texts[row] = cut(text, self.decoding.stop)
        return texts

    def references(self, split: str) -> np.ndarray:
        """The references (n,) of a reported split; of ``select`` there are none, its batches have the answers."""
        return np.array([] if split == "select" else self.split(split).references, dtype=object)

    def measure(self, split: str, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        """Of ``select`` the mean loss of an answer's token in nats; of a reported split the official metrics."""
        if split == "select":
            loss, tokens = predictions.sum(axis=0)
            return {"loss": float(loss / tokens)}
        return self.score(predictions, references)

    def tracked(self) -> Sequence[str]:
        """None: generating the reported splits during training would cost more than the training."""
        return ()


def cut(text: str, stop: Sequence[str]) -> str:
    """``text`` up to the first of the strings at which an answer ends."""
    ends = [place for string in stop if (place := text.find(string)) >= 0]
    return text[: min(ends)] if ends else text


class EncodedCompletions:
    """A tokenised split. ``ids``: the tokens of all examples end to end, int32; ``offsets`` (n + 1,): where each
    begins; ``ends`` (n,): where each one's prompt ends; ``kept`` (n,): its place in the split.
    """

    def __init__(self, arrays: Arrays, pad_id: int, answered: bool, notes: Mapping[str, int]) -> None:
        self.ids, self.offsets = arrays["ids"], arrays["offsets"]
        self.ends, self.kept = arrays["ends"], arrays["kept"]
        self.pad_id, self.answered, self.notes = pad_id, answered, notes

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each example."""
        return [int(size) for size in np.diff(self.offsets)]

    def collate(self, positions: list[int]) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask`` (batch, length) int64; ``index`` (batch,): places in the split.

        With answers padded on the right and with ``labels`` (batch, length), ``IGNORED`` outside them; prompts alone
        are padded on the left.
        """
        index = np.asarray(positions)
        sizes = self.offsets[index + 1] - self.offsets[index]
        shape = (len(index), int(sizes.max()))
        ids = np.full(shape, self.pad_id, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        labels = np.full(shape, IGNORED, dtype=np.int64)
        for row, (position, size) in enumerate(zip(index, sizes, strict=True)):
            begin = self.offsets[position]
            place = slice(0, size) if self.answered else slice(shape[1] - size, None)
            ids[row, place] = self.ids[begin : begin + size]
            mask[row, place] = 1
            prompt = self.ends[position] - begin
            labels[row, prompt:size] = self.ids[self.ends[position] : begin + size]
        batch = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        if self.answered:
            batch["labels"] = torch.from_numpy(labels)
        batch["index"] = torch.from_numpy(np.array(self.kept[index]))
        return batch


def encode(
    split: Completions, tokenizer: Any, max_length: int, answered: bool, separator: bool = False
) -> EncodedCompletions:
    """Tokenise once; the arrays are memory-mapped from the cache.

    ``answered``: with their answers and the end token, the examples that have one and fit into ``max_length`` tokens;
    else the prompts alone, the last ``max_length`` tokens of each. ``separator``: the end token behind the prompt.
    """
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no end token: an answer would have no end")

    def tokens() -> Arrays:
        return _encode(split, tokenizer, max_length, answered, separator)

    if getattr(tokenizer, "backend_tokenizer", None) is None:  # it does not say what it does to a text
        arrays = tokens()
    else:
        rule = (tokenizer_digest(tokenizer), tokenizer.eos_token_id)  # kin with one vocabulary may end texts otherwise
        arrays = dict(stored("tokens", (split.digest(), rule, max_length, answered, separator), tokens))
    counts = arrays.pop("counts").tolist()
    notes = dict(zip(("too_long", "empty_answer", "cut_prompt", "empty_prompt"), counts, strict=True))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return EncodedCompletions(arrays, pad, answered, notes)


def _encode(split: Completions, tokenizer: Any, max_length: int, answered: bool, separator: bool) -> Arrays:
    prompts = tokenizer(split.prompts, return_attention_mask=False, verbose=False)["input_ids"] if len(split) else []
    answers: list[list[int]] = [[] for _ in prompts]
    if answered and len(split):
        options = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
        answers = tokenizer(split.answers, **options)["input_ids"]
    end = [tokenizer.eos_token_id]
    rows, ends, kept = [], [], []
    too_long = empty_answer = cut_prompt = 0
    for place, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        before = [*prompt, *end] if separator else list(prompt) or end  # an answer's first token follows something
        if answered:
            if not split.answers[place].strip():
                empty_answer += 1
                continue
            row = [*before, *answer, *end]
            if len(row) > max_length:
                too_long += 1
                continue
        else:
            row = before[-max_length:]
            cut_prompt += len(before) > max_length
            before = row
        rows.append(row)
        ends.append(len(before))
        kept.append(place)
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    empty_prompt = sum(not prompt.strip() for prompt in split.prompts)
    return {
        "ids": np.fromiter((token for row in rows for token in row), dtype=np.int32, count=int(offsets[-1])),
        "offsets": offsets,
        "ends": offsets[:-1] + np.array(ends, dtype=np.int64),
        "kept": np.array(kept, dtype=np.int64),
        "counts": np.array([too_long, empty_answer, cut_prompt, empty_prompt], dtype=np.int64),
    }
