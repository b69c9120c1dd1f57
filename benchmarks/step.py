"""Step times, both sides in one process and in turns: ``python -m benchmarks.step``.

1. our LoRA training step against PEFT's on the same MiniLM, same factors (logits must be equal)
2. AltLoRA's and AltLoRA+'s step against LoRA's
3. a step of the whole Lightning run, callbacks and log included, against a plain PyTorch loop (weights must be equal)

Each figure is the median over rounds of interleaved steps; the ratio is the median of the rounds' own ratios, which
holds when the machine's speed drifts. The least time of each side is printed beside it.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch

from lrx import registry
from lrx.callbacks.costs import Costs
from lrx.callbacks.metric_log import MetricLog
from lrx.callbacks.selection import Selection
from lrx.callbacks.stop import StopSignals
from lrx.config import compose, settings_of
from lrx.experiment import quiet_libraries
from lrx.methods.base import Method
from lrx.models.base import Backbone, Inputs, Outputs
from lrx.modules.supervised import Schedule, Supervised
from lrx.tasks.base import Task
from lrx.trackers import Tracker

TARGETS = ["query", "value"]
BARS = {"lora / peft": 1.03, "altlora / lora": 1.10, "altlora_plus / lora": 1.10, "lightning / plain": 1.10}


class Fixed(Task):
    """Random token ids, the same for every side: what is timed is the step, not the data."""

    name, primary, reported = "fixed", "accuracy", ("test",)
    higher_is_better: ClassVar[dict[str, bool]] = {"accuracy": True}  # type: ignore[misc]

    def __init__(self, batch: int, length: int, steps: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.batches = []
        for i in range(steps):
            ids = torch.randint(1000, 20000, (batch, length), generator=generator)
            labels = torch.randint(0, 2, (batch,), generator=generator)
            self.batches.append(
                {
                    "input_ids": ids,
                    "attention_mask": torch.ones_like(ids),
                    "labels": labels,
                    "index": torch.full((batch,), i),
                }
            )

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(self.batches, batch_size=None, shuffle=False, generator=torch.Generator())

    def loss(self, backbone: Backbone, batch: dict[str, Any]) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(backbone(batch), batch["labels"])


def build(name: str, **options: Any) -> tuple[Backbone, Method]:
    """MiniLM adapted by a method; equal seeds give every method the same backbone and the same factors."""
    settings = settings_of(compose(["method=lora", "model=minilm"]))
    arguments = {key: value for key, value in settings.model.items() if key not in {"name", "family"}}
    backbone = registry.load("models", settings.model["family"])(**arguments).build(
        Inputs("text"), Outputs("classes", 2), 0
    )
    method = registry.load("methods", name)(lr=1e-3, **options)
    method.adapt(backbone, torch.Generator().manual_seed(0))
    backbone.train()
    return backbone, method


class Side:
    """One competitor: forward, backward, clipping and optimizer step on a given batch."""

    def __init__(self, backbone: Backbone, method: Method, task: Fixed) -> None:
        self.backbone, self.method, self.task = backbone, method, task
        self.optimizer = method.optimizer(backbone)
        self.trained = [p for p in backbone.parameters() if p.requires_grad]
        self.count = 0

    def step(self, batch: dict[str, Any]) -> None:
        loss = self.task.loss(self.backbone, batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.method.before_step(self.backbone, self.optimizer, self.count)
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.method.after_step(self.backbone, self.optimizer, self.count)
        self.count += 1


def race(
    first: Callable[[dict[str, Any]], None], second: Callable[[dict[str, Any]], None], task: Fixed, rounds: int
) -> list[tuple[float, float]]:
    """Seconds of (first, second) on the same batch, in alternating order, after two rounds of warm-up."""
    times = []
    for i in range(rounds + 2):
        batch = task.batches[i % len(task.batches)]
        seconds = {}
        for side in ((first, second), (second, first))[i % 2]:
            start = time.perf_counter()
            side(batch)
            seconds[side] = time.perf_counter() - start
        times.append((seconds[first], seconds[second]))
    return times[2:]


def report(label: str, times: Sequence[tuple[float, float]]) -> float:
    """Print one line; returns the median ratio."""
    first, second = zip(*times, strict=True)
    ratio = statistics.median(a / b for a, b in times)
    bar = BARS[label]
    verdict = "met" if ratio <= bar else "MISSED"
    print(
        f"{label:<20} {statistics.median(first) * 1e3:7.1f} / {statistics.median(second) * 1e3:7.1f} ms"
        f"   least {min(first) * 1e3:7.1f} / {min(second) * 1e3:7.1f} ms"
        f"   ratio {ratio:.3f} (least {min(first) / min(second):.3f})   bar {bar:.2f} {verdict}"
    )
    return ratio


def lora_against_peft(task: Fixed, rounds: int) -> float:
    """Equal factors, equal logits, then equal work."""
    ours, our_method = build("lora", rank=8, alpha=16.0, target_modules=TARGETS)
    theirs, their_method = build("peft", tuner="lora", target_modules=TARGETS, options={"r": 8, "lora_alpha": 16})
    generator = torch.Generator().manual_seed(1)
    factors = {}
    with torch.no_grad():
        for pair in our_method.pairs(ours):
            pair.B.copy_(torch.randn(pair.B.shape, generator=generator) * 0.02)
            factors[pair.name] = pair
        copied = 0
        for name, module in theirs.net.named_modules():
            if name in factors and hasattr(module, "lora_A"):
                (adapter,) = module.lora_A
                module.lora_A[adapter].weight.copy_(factors[name].A)
                module.lora_B[adapter].weight.copy_(factors[name].B)
                copied += 1
    assert copied == len(factors) == 12
    ours.eval()
    theirs.eval()
    with torch.no_grad():
        gap = (ours(task.batches[0]) - theirs(task.batches[0])).abs().max().item()
    print(f"logits of lora and peft from copied factors: largest difference {gap:.1e}")
    assert gap < 1e-5
    ours.train()
    theirs.train()
    return report(
        "lora / peft", race(Side(ours, our_method, task).step, Side(theirs, their_method, task).step, task, rounds)
    )


def method_against_lora(name: str, task: Fixed, rounds: int) -> float:
    """The same adapter, another optimizer."""
    sides = []
    for method in (name, "lora"):
        backbone, built = build(method, rank=8, alpha=16.0, target_modules=TARGETS)
        sides.append(Side(backbone, built, task))
    return report(f"{name} / lora", race(sides[0].step, sides[1].step, task, rounds))


class Rounds(pl.Callback):
    """Makes the plain loop take its step after each of Lightning's, and times both."""

    def __init__(self, plain: Callable[[dict[str, Any]], None]) -> None:
        self.plain = plain
        self.times: list[tuple[float, float]] = []
        self.start = 0.0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        middle = time.perf_counter()
        self.plain(batch)
        end = time.perf_counter()
        self.times.append((middle - self.start, end - middle))
        self.start = end  # fetching the next batch and Lightning's own loop count on Lightning's side


def lightning_against_plain(task: Fixed, steps: int) -> float:
    """The module, its callbacks and the metric log, as a run has them, against forward, backward, clip, step."""
    ours, our_method = build("lora", rank=8, alpha=16.0, target_modules=TARGETS)
    plain, plain_method = build("lora", rank=8, alpha=16.0, target_modules=TARGETS)
    module = Supervised(ours, task, our_method, Schedule("constant", steps, 0), seed=0)
    side = Side(plain, plain_method, task)

    def plain_step(batch: dict[str, Any]) -> None:
        seed = torch.initial_seed()  # the module seeded this batch: dropout draws the same numbers
        torch.manual_seed(seed)
        side.step(batch)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        selection = Selection(set(), None, path / "best", "32-true", None)
        log = MetricLog(path / "metrics.jsonl", "fixed", 10, selection, Tracker(), verbose=False)
        rounds = Rounds(plain_step)
        trainer = pl.Trainer(
            accelerator="cpu", max_steps=steps, max_epochs=-1, gradient_clip_val=1.0, logger=False,
            callbacks=[Costs(), selection, log, StopSignals(path), rounds], enable_progress_bar=False,
            enable_checkpointing=False, enable_model_summary=False, default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(module, train_dataloaders=task.train_dataloader())
    equal = all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), plain.state_dict().values(), strict=True))
    moved = not torch.equal(ours.net.classifier.weight, build("lora", target_modules=TARGETS)[0].net.classifier.weight)
    print(f"weights of Lightning and the plain loop after {side.count} steps: {'equal' if equal else 'DIFFERENT'}")
    assert equal
    assert moved
    return report("lightning / plain", rounds.times[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=40, help="steps of each side in the first two comparisons")
    parser.add_argument("--steps", type=int, default=100, help="steps of the comparison with the plain loop")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    quiet_libraries()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    task = Fixed(options.batch, options.length, max(options.steps, options.rounds))
    print(
        f"MiniLM, fp32, batch {options.batch} x {options.length} tokens, rank 8 on query and value, "
        f"{options.threads} thread, torch {torch.__version__}"
    )
    lora_against_peft(task, options.rounds)
    method_against_lora("altlora", task, options.rounds)
    method_against_lora("altlora_plus", task, options.rounds)
    lightning_against_plain(task, options.steps)


if __name__ == "__main__":
    main()
