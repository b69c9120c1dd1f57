"""A DataLoader that can be left and taken up again at any batch, with the same batches after as without the break.

Lightning 2.6 stores no generator state and restarts an interrupted epoch at its beginning. Here the order of an epoch
is a pure function of (seed, epoch), so nothing random has to be stored, and the loader's state is how many batches of
which epoch were handed out; Lightning saves and restores it through ``state_dict`` / ``load_state_dict``. A checkpoint
has to be written while training runs: after a ``fit`` that ``max_steps`` ended inside an epoch, Lightning counts that
epoch as finished and would go on with the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from lrx.seeds import derive


class EpochBatches(Sampler[list[int]]):
    """Batches of positions; the order of epoch e is a permutation drawn from (``seed``, e) alone.

    The last batch may be smaller. ``start``: batches to leave out at the beginning, set by the loader before each pass
    (PyTorch may begin a pass more than once). With ``world`` processes, every one takes its ``rank``-th share of each
    batch of ``size * world`` positions; the order is filled up from its beginning so that all have equally many.

    ``lengths``: tokens of each example; given, examples of similar length share a batch (less padding): the permutation
    is cut into pools of ``POOL`` batches, each pool is sorted by length and cut into batches, and the batches of the
    whole epoch are shuffled.
    """

    POOL = 50

    def __init__(
        self, length: int, size: int, seed: int, rank: int = 0, world: int = 1, lengths: Sequence[int] | None = None
    ) -> None:
        self.length, self.size, self.seed, self.lengths = length, size, seed, lengths
        self.rank, self.world = rank, world
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; Lightning calls it at the beginning of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.length // (self.size * self.world))

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(derive(self.seed, "order", self.epoch))
        order = torch.randperm(self.length, generator=generator).tolist()
        order += order[: -len(order) % self.world]
        step = self.size * self.world
        if self.lengths is not None:
            lengths, pool = self.lengths, self.POOL * step
            pools = (order[i : i + pool] for i in range(0, len(order), pool))
            order = [position for some in pools for position in sorted(some, key=lambda i: (lengths[i], i))]
        batches = [order[i : i + step][self.rank :: self.world] for i in range(0, len(order), step)]
        if self.lengths is not None:
            batches = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
        return iter(batches[self.start :])


class ResumableLoader(DataLoader[Any]):
    """A loader over ``EpochBatches`` whose state is (epoch, batches handed out in it).

    ``dataset[list of positions]`` returns a whole batch. Worker seeds come from a generator of the loader's own, since
    each pass would otherwise draw one number from the global generator. Prefetched batches do not count as handed out.
    """

    def __init__(self, dataset: Dataset[Any], batches: EpochBatches, workers: int = 0) -> None:
        super().__init__(
            dataset,
            batch_size=None,
            sampler=batches,
            num_workers=workers,
            persistent_workers=workers > 0,
            generator=torch.Generator().manual_seed(derive(batches.seed, "workers")),
        )
        self.batches = batches
        self._resume: tuple[int, int] | None = None
        self._handed_out = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        epoch, done = self._resume or (-1, 0)
        self._resume = None
        first = done if epoch == self.batches.epoch and done < len(self.batches) else 0
        self.batches.start = self._handed_out = first
        for batch in super().__iter__():
            self._handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """How far the current epoch is."""
        return {"epoch": self.batches.epoch, "batches": self._handed_out}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The next pass over the stored epoch goes on behind the batches handed out; another epoch starts anew."""
        self._resume = (state["epoch"], state["batches"])
        self._handed_out = state["batches"]


class Batches(Sequence[list[int]]):
    """Fixed batches of positions, longest examples first, for evaluation: little padding, and memory peaks at once."""

    def __init__(self, lengths: Sequence[int], size: int) -> None:
        order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
        self.groups = [order[i : i + size] for i in range(0, len(order), size)]

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: Any) -> Any:
        return self.groups[index]


def evaluation_loader(dataset: Dataset[Any], batches: Batches, workers: int = 0) -> DataLoader[Any]:
    """Every example of ``dataset`` once, in ``batches``. Draws nothing from the global random generator."""
    sampler: Any = batches
    return DataLoader(dataset, batch_size=None, sampler=sampler, num_workers=workers, generator=torch.Generator())


class Positions(Dataset[Any]):
    """The data set that ``collate`` makes of lists of positions."""

    def __init__(self, length: int, collate: Callable[[list[int]], Any]) -> None:
        self.length, self.collate = length, collate

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, positions: list[int]) -> Any:
        return self.collate(positions)
