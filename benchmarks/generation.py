"""Tokens per second of a causal model, ours beside plain transformers: ``python -m benchmarks.generation``.

1. training: our LoRA step against transformers' own loss with PEFT's LoRA, the same factors (losses must be equal),
   batches as ``task=gsm8k`` gives them
2. the part of a training step that goes to fetching its batch
3. greedy generation after the task's prompts: ours against ``generate`` of the PEFT model (texts must be equal), once
   to the last token and once with rows that end at different lengths

Both sides run in one process, in turns. Each figure is the median over rounds; the ratio (ours to theirs, in tokens
per second) is the median of the rounds' own ratios.
"""

from __future__ import annotations

import argparse
import copy
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from lrx import registry
from lrx.config import compose, settings_of
from lrx.experiment import build_suite, quiet_libraries
from lrx.models.base import Backbone, Decoding
from lrx.tasks.base import Task
from lrx.training import build_backbone

TARGETS = ["query", "value"]
BARS = {"training": 0.95, "generation": 1.0, "generation, rows that end": 1.0}
SHARE = 0.02  # of a step, at most, for its batch
Batch = dict[str, Any]
Clock = Callable[[], float]


def sides(task: Task, settings: Any) -> tuple[Backbone, torch.optim.Optimizer, Any, torch.optim.Optimizer]:
    """Our adapted backbone and transformers' network below PEFT's LoRA with the same factors, each with its AdamW."""
    from peft import LoraConfig, get_peft_model

    ours = build_backbone(task, settings)
    theirs = copy.deepcopy(ours.net)
    method = registry.load("methods", "lora")(lr=1e-4, rank=8, alpha=16.0, target_modules=TARGETS)
    method.adapt(ours, torch.Generator().manual_seed(0))
    names = [pair.name for pair in method.pairs(ours)]
    wrapped = get_peft_model(theirs, LoraConfig(r=8, lora_alpha=16, target_modules=names))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for pair in method.pairs(ours):
            pair.B.copy_(torch.randn(pair.B.shape, generator=generator) * 1e-3)
            layer = wrapped.base_model.model.get_submodule(pair.name)
            layer.lora_A["default"].weight.copy_(pair.A)
            layer.lora_B["default"].weight.copy_(pair.B)
    trained = [p for p in wrapped.parameters() if p.requires_grad]
    return ours.train(), method.optimizer(ours), wrapped.train(), torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)


def race(
    first: Callable[[Batch], Any], second: Callable[[Batch], Any], batches: Sequence[Batch], rounds: int, clock: Clock
) -> list[tuple[float, float]]:
    """Seconds of (first, second) on the same batch, in alternating order, after one round of warm-up."""
    times = []
    for i in range(rounds + 1):
        batch = batches[i % len(batches)]
        seconds = {}
        for side in ((first, second), (second, first))[i % 2]:
            start = clock()
            side(batch)
            seconds[side] = clock() - start
        times.append((seconds[first], seconds[second]))
    return times[1:]


def report(label: str, times: Sequence[tuple[float, float]], tokens: float) -> None:
    """Print one line; ``tokens``: in a batch, on average."""
    ours, theirs = zip(*times, strict=True)
    ratio = statistics.median(b / a for a, b in times)
    verdict = "met" if ratio >= BARS[label] else "MISSED"
    print(
        f"{label:<26} {tokens / statistics.median(ours):8.1f} / {tokens / statistics.median(theirs):8.1f} tokens/s"
        f"   {statistics.median(ours):6.2f} / {statistics.median(theirs):6.2f} s   ratio {ratio:.3f}"
        f"   bar {BARS[label]:.2f} {verdict}",
        flush=True,
    )


def training(task: Task, settings: Any, rounds: int, clock: Clock) -> None:
    ours, our_optimizer, theirs, their_optimizer = sides(task, settings)
    loader, batches = iter(task.train_dataloader()), []
    fetching = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        batches.append(next(loader))
        fetching.append(time.perf_counter() - start)
    losses: dict[str, list[float]] = {"ours": [], "theirs": []}

    def our_step(batch: Batch) -> None:
        loss = task.loss(ours, batch)
        loss.backward()
        our_optimizer.step()
        our_optimizer.zero_grad()
        losses["ours"].append(loss.item())

    def their_step(batch: Batch) -> None:
        given = {key: batch[key] for key in ("input_ids", "attention_mask", "labels")}
        loss = theirs(**given).loss
        loss.backward()
        their_optimizer.step()
        their_optimizer.zero_grad()
        losses["theirs"].append(loss.item())

    times = race(our_step, their_step, batches, rounds, clock)
    gap = max(abs(a - b) for a, b in zip(losses["ours"], losses["theirs"], strict=True))
    print(f"losses of {rounds + 1} steps: largest difference {gap:.1e}")
    assert gap < 1e-3
    tokens = statistics.mean(float(batch["attention_mask"].sum()) for batch in batches)
    report("training", times, tokens)
    share = statistics.median(fetching[1:]) / statistics.median(a for a, _ in times)
    verdict = "met" if share <= SHARE else "MISSED"
    print(f"fetching a batch: {statistics.median(fetching[1:]) * 1e3:.2f} ms, {share:.3%} of a step   {verdict}")


def generation(task: Task, settings: Any, decoding: Decoding, rounds: int, clock: Clock) -> None:
    ours, _, theirs, _ = sides(task, settings)
    theirs.eval()
    pad = ours.tokenizer.pad_token_id
    batches = [batch for batch, _ in zip(task.eval_dataloader(task.reported[0]), range(rounds + 1), strict=False)]
    written: dict[str, list[torch.Tensor]] = {"ours": [], "theirs": []}

    def run(label: str, ends: list[int]) -> None:
        ours.net.generation_config.eos_token_id = ends
        for texts in written.values():
            texts.clear()

        def our_side(batch: Batch) -> None:
            written["ours"].append(ours.generate(batch, decoding))

        def their_side(batch: Batch) -> None:
            prompts = {key: batch[key] for key in ("input_ids", "attention_mask")}
            options = {"max_new_tokens": decoding.max_new_tokens, "do_sample": False, "pad_token_id": pad}
            tokens = theirs.generate(**prompts, **options, eos_token_id=ours.end_tokens())
            written["theirs"].append(tokens[:, batch["input_ids"].shape[1] :])

        times = race(our_side, their_side, batches, rounds, clock)
        equal = [torch.equal(a, b) for a, b in zip(written["ours"], written["theirs"], strict=True)]
        print(f"tokens of {len(equal)} batches: {'equal' if all(equal) else 'DIFFERENT'}")
        assert all(equal)
        ended = torch.tensor(ours.end_tokens())
        count = sum(_count(rows, ended) for rows in written["ours"]) / len(equal)
        report(label, times, count)

    tokenizer = ours.tokenizer
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(len(tokenizer) - 1)  # hardly ever written: no row ends
    run("generation", [])
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("Ċ", ".", ".Ċ") if token in tokenizer.get_vocab()]
    run("generation, rows that end", ends)


def _count(rows: torch.Tensor, ends: torch.Tensor) -> int:
    """Tokens written up to each row's end."""
    stopped = torch.isin(rows, ends)
    return int(torch.where(stopped.any(1), stopped.int().argmax(1) + 1, rows.shape[1]).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2_135m")
    parser.add_argument("--batch", type=int, default=8, help="examples of a training step")
    parser.add_argument("--prompts", type=int, default=16, help="rows that are generated at once")
    parser.add_argument("--tokens", type=int, default=48, help="new tokens in a row, at most")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: on a machine that others use too"
    )
    options = parser.parse_args()
    quiet_libraries()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    choice = [f"task.batch_size={options.batch}", f"task.eval_batch_size={options.prompts}", f"model={options.model}"]
    settings = settings_of(compose(["method=lora", "task=gsm8k", "scale=mini", *choice]))
    (task,) = build_suite(settings).parts()
    task.bind(build_backbone(task, settings), 0)
    print(f"{options.model}, fp32, rank 8 on query and value, {options.threads} thread, torch {torch.__version__}")
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    training(task, settings, options.rounds, clock)
    generation(task, settings, Decoding(options.tokens), options.rounds, clock)


if __name__ == "__main__":
    main()
