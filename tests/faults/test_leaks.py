"""State leaks: a run gives the same numbers alone as behind any other run in the same process."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from tests.conftest import command
from tests.faults.leaks import KINDS, ROW


def test_a_run_is_the_same_alone_and_behind_every_other_kind(tmp_path: Path) -> None:
    """The one before has another method, model, seed, number of threads."""
    assert set(itertools.pairwise(ROW)) == set(itertools.product(KINDS, repeat=2))
    done = command("-m", "tests.faults.leaks", str(tmp_path), timeout=250)
    assert done.code == 0, done
    found = json.loads(done.out.splitlines()[-1])
    for place, (kind, seed, alone, behind) in enumerate(found):
        assert alone == behind, f"{kind} with seed {seed}, run {place + 1} of {ROW}"
    assert len({(kind, seed, alone) for kind, seed, alone, _ in found}) == len({alone for _, _, alone, _ in found})
