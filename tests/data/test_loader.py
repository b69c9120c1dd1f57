"""Leaving and taking up training: the same weights, bit for bit, as without the break."""

from __future__ import annotations

import itertools
import logging
import warnings

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from lrx.data.loader import Batches, EpochBatches, Positions, ResumableLoader, evaluation_loader

LENGTH, SIZE, EPOCHS = 38, 4, 3  # 10 batches an epoch, the last one smaller
PER_EPOCH = 10


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.set_num_threads(before)


DATA = torch.randn(LENGTH, 6, generator=torch.Generator().manual_seed(3))


def collate(positions: list[int]) -> torch.Tensor:
    return DATA[positions]


def loader(workers: int = 0) -> ResumableLoader:
    return ResumableLoader(Positions(LENGTH, collate), EpochBatches(LENGTH, SIZE, seed=5), workers)


class Toy(pl.LightningModule):
    """Dropout, momentum, and random numbers counted by batches seen, as the framework's own module has them."""

    def __init__(self, accumulate: int) -> None:
        super().__init__()
        self.accumulate = accumulate
        self.seen = 0
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3), nn.Linear(8, 1))
        self.order: list[float] = []

    def on_train_batch_start(self, batch, batch_idx):
        torch.manual_seed(1000 + self.seen)
        self.seen += 1

    def training_step(self, batch, batch_idx):
        self.order.append(float(batch.sum()))
        return self.net(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.05)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["seen"] = self.seen

    def on_load_checkpoint(self, checkpoint):
        self.seen = checkpoint["seen"]


class Break(Exception):
    pass


class SaveAndBreak(pl.Callback):
    """Saves after ``batches`` batches in all and ends the process's training as a crash would."""

    def __init__(self, batches: int, path: str) -> None:
        self.batches, self.path = batches, path

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if module.seen == self.batches:
            trainer.save_checkpoint(self.path)
            raise Break


class SaveAtEpochEnd(SaveAndBreak):
    def on_train_batch_end(self, *_):
        pass

    def on_train_epoch_end(self, trainer, module):
        if module.seen == self.batches:
            trainer.save_checkpoint(self.path)
            raise Break


def fit(
    workers: int, accumulate: int, callback: pl.Callback | None = None, resume: str | None = None, **options
) -> Toy:
    torch.manual_seed(0)
    module = Toy(accumulate)
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        accumulate_grad_batches=accumulate,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback] if callback else [],
        **options,
    )
    trainer.fit(module, loader(workers), ckpt_path=resume, weights_only=True)
    module.last_trainer = trainer
    return module


@pytest.fixture(scope="module")
def whole():
    return {accumulate: fit(0, accumulate) for accumulate in (1, 2)}


CASES = [(batches, 0, 1) for batches in (1, 5, 9, 10, 11, 17, 29)]
CASES += [(batches, 0, 2) for batches in (3, 4, 10, 13)] + [(7, 2, 1), (20, 2, 2)]


@pytest.mark.parametrize(("batches", "workers", "accumulate"), CASES)
def test_resumed_equals_uninterrupted(tmp_path, whole, batches, workers, accumulate):
    path = str(tmp_path / "toy.ckpt")
    with pytest.raises(Break):
        fit(workers, accumulate, SaveAndBreak(batches, path))
    resumed = fit(workers, accumulate, resume=path)
    assert resumed.order == whole[accumulate].order[batches:]
    if batches % accumulate == 0 or batches % PER_EPOCH == 0:  # else gradients of the open window are lost
        for a, b in zip(resumed.parameters(), whole[accumulate].parameters(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("batches", [10, 20])
def test_resumed_from_an_epochs_end(tmp_path, whole, batches):
    path = str(tmp_path / "toy.ckpt")
    with pytest.raises(Break):
        fit(0, 1, SaveAtEpochEnd(batches, path))
    resumed = fit(0, 1, resume=path)
    assert resumed.order == whole[1].order[batches:]
    for a, b in zip(resumed.parameters(), whole[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_resumed_after_max_steps_at_an_epochs_end(tmp_path, whole):
    steps = PER_EPOCH
    path = str(tmp_path / "toy.ckpt")
    fit(0, 1, max_steps=steps).last_trainer.save_checkpoint(path)
    resumed = fit(0, 1, resume=path)
    assert resumed.order == whole[1].order[steps:]
    for a, b in zip(resumed.parameters(), whole[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_workers_change_nothing(whole):
    with_workers = fit(2, 1)
    assert with_workers.order == whole[1].order
    for a, b in zip(with_workers.parameters(), whole[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_order_is_a_function_of_seed_and_epoch():
    batches = EpochBatches(11, 3, seed=1)
    first = list(batches)
    assert sorted(itertools.chain(*first)) == list(range(11))
    batches.set_epoch(1)
    assert list(batches) != first
    batches.set_epoch(0)
    assert list(batches) == first
    assert list(EpochBatches(11, 3, seed=2)) != first


def test_order_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    list(loader())
    list(evaluation_loader(Positions(LENGTH, collate), Batches([1] * LENGTH, 5)))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("length", [1, 11, 12, 13])
def test_processes_share_an_epoch(length):
    shares = [list(EpochBatches(length, 3, seed=1, rank=rank, world=2)) for rank in (0, 1)]
    assert [len(share) for share in shares] == [len(EpochBatches(length, 3, seed=1, world=2))] * 2
    assert all(len(a) == len(b) for a, b in zip(*shares, strict=True))
    assert {i for share in shares for batch in share for i in batch} == set(range(length))


def test_evaluation_batches_cover_everything_once_longest_first():
    lengths = [3, 9, 1, 9, 5]
    batches = list(Batches(lengths, 2))
    assert batches == [[1, 3], [4, 0], [2]]


def test_grouping_by_length_keeps_every_example_and_stays_a_function_of_seed_and_epoch() -> None:
    lengths = torch.randint(3, 60, (1000,), generator=torch.Generator().manual_seed(0)).tolist()

    def epoch(number: int, seed: int = 5) -> list[list[int]]:
        batches = EpochBatches(1000, 8, seed, lengths=lengths)
        batches.set_epoch(number)
        return list(batches)

    assert sorted(position for batch in epoch(0) for position in batch) == list(range(1000))
    assert epoch(1) == epoch(1)
    assert epoch(1) != epoch(0)
    assert epoch(1, seed=6) != epoch(1)
    spread = max(max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in epoch(0))
    assert spread < 20  # an ungrouped batch of 8 spreads over about 45
    longest = [max(lengths[i] for i in batch) for batch in epoch(0)]
    assert longest != sorted(longest)  # lengths do not grow over the epoch

    late = EpochBatches(1000, 8, 5, lengths=lengths)
    late.start = 7
    assert list(late) == epoch(0)[7:]
