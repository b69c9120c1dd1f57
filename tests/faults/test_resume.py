"""A run that is killed again and again goes on to the numbers of the uninterrupted run."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.faults.forked import METHODS, logged, numbers, run, small


def two_parts(method: str, *more: str) -> list[str]:
    choice = [o for o in small(method) if not o.startswith("task.subset")]
    return [*choice, "task.subset=[sentiment,intensity]", "callbacks.checkpoint.every_n_steps=5", *more]


FAST = ("altlora", "peft")


@pytest.mark.parametrize(
    "method", [method if method in FAST else pytest.param(method, marks=pytest.mark.slow) for method in METHODS]
)
def test_killed_in_mid_epoch_and_run_again_gives_the_same_numbers(method: str, tmp_path: Path) -> None:
    assert run(two_parts(method), tmp_path / "whole").code == 0
    root = tmp_path / "broken"
    assert run(two_parts(method), root, when=logged(root, 7, "intensity")).code == -signal.SIGKILL
    assert not list(root.glob("records/*.json"))
    assert list(root.glob("runs/*/intensity/checkpoints/*.ckpt"))
    again = run(two_parts(method), root)
    assert again.code == 0, again
    assert "intensity: going on from step-" in again.out
    assert "sentiment: step" not in again.out  # the part that was done is not trained again
    assert numbers(root) == numbers(tmp_path / "whole")


@pytest.mark.parametrize("more", [["task.workers=2"], ["trainer.max_steps=null", "trainer.max_epochs=2"]])
def test_killed_with_workers_and_with_epochs(more: list[str], tmp_path: Path) -> None:
    """Workers that outlive their killed run for a moment do not keep the next one from its folder."""
    choice = small("altlora", "callbacks.checkpoint.every_n_steps=5", *more)
    assert run(choice, tmp_path / "whole").code == 0
    root = tmp_path / "broken"
    assert run(choice, root, when=logged(root, 8)).code == -signal.SIGKILL
    again = run(choice, root)
    assert again.code == 0, again
    assert "sentiment: going on from step-" in again.out
    assert numbers(root) == numbers(tmp_path / "whole")


@pytest.mark.parametrize("name", ["adapter.safetensors", "part.json"])
def test_killed_while_a_part_is_scored(name: str, tmp_path: Path) -> None:
    """The best weights, of an earlier step than the last, are still there for the run that goes on."""
    choice = small("lora", "trainer.evaluations=4", "callbacks.checkpoint.every_n_steps=5")
    assert run(choice, tmp_path / "whole").code == 0

    def deadly() -> None:
        import lrx.training

        write = lrx.training.write_atomic

        def killing(path: Path, content: str | bytes) -> Path:
            if Path(path).name == name:
                os.kill(os.getpid(), signal.SIGKILL)
            return write(path, content)

        lrx.training.write_atomic = killing

    assert run(choice, tmp_path / "broken", deadly).code == -signal.SIGKILL
    assert run(choice, tmp_path / "broken").code == 0
    assert numbers(tmp_path / "broken") == numbers(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_killed_at_random_moments_until_done(method: str, tmp_path: Path) -> None:
    """``kill -9`` again and again: while training, checkpointing, scoring or writing the record."""
    assert run(two_parts(method), tmp_path / "whole").code == 0
    choice = two_parts(method, "callbacks.checkpoint.every_n_steps=1")
    root = tmp_path / "broken"
    rng = random.Random(0)
    kills = 0
    for _ in range(40):
        moment = time.monotonic() + rng.uniform(0.3, 1.5)
        code = run(choice, root, when=lambda moment=moment: time.monotonic() > moment).code
        kills += code != 0
        if code == 0:
            break
    else:
        assert run(choice, root).code == 0
    assert kills >= 3
    assert numbers(root) == numbers(tmp_path / "whole")
