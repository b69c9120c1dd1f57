"""Runs behind each other in one process, and each of them alone in another: prints digests of what both computed.

A program of its own, so that no run has happened before: it imports everything once and forks for each row of runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import sys
from pathlib import Path

KINDS = {
    "adapter": ["method=peft", "method.tuner=adalora", "+method.options.init_r=4", "+method.options.target_r=2"],
    "optimizer": ["method=altlora_plus", "model=tiny_llama", "trainer.clip=null"],
    "full": ["method=full", "trainer.threads=2", "trainer.accumulate=2"],
}
# Every kind comes behind every other and behind itself; seeds alternate.
ROW = ["adapter", "adapter", "optimizer", "optimizer", "full", "full", "adapter", "full", "optimizer", "adapter"]
SMALL = [
    "scale=smoke", "task.subset=sentiment", "logger=none", "trainer.max_steps=3", "task.train_limit=32",
    "task.eval_limit=32", "callbacks.checkpoint.every_n_steps=null", "logger.every_n_steps=1",
]  # fmt: skip


def one(kind: str, seed: int, root: Path) -> str:
    """Run, and give a digest of all that was computed."""
    from lrx.launch import main

    with contextlib.redirect_stdout(io.StringIO()):
        code = main([*SMALL, *KINDS[kind], f"seed={seed}", f"paths.root={root}"])
    assert code == 0, (kind, code)
    (folder,) = root.glob("runs/*/sentiment")
    found = hashlib.sha256()
    for name in ("metrics.jsonl", "adapter.safetensors", "predictions.test.csv"):
        found.update((folder / name).read_bytes())
    return found.hexdigest()


def in_a_fork(row: list[tuple[str, int]], base: Path) -> list[str]:
    """The digests of the runs of ``row``, one behind the other in a process of their own."""
    base.mkdir()
    if (child := os.fork()) == 0:
        code = 1
        try:
            found = [one(kind, seed, base / str(place)) for place, (kind, seed) in enumerate(row)]
            (base / "found.json").write_text(json.dumps(found))
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, row
    return list(json.loads((base / "found.json").read_text()))


def main() -> None:
    import lrx.experiment  # noqa: F401

    base = Path(sys.argv[1])
    row = [(kind, place % 2) for place, kind in enumerate(ROW)]
    alone = {run: in_a_fork([run], base / f"{run[0]}-{run[1]}")[0] for run in dict.fromkeys(row)}
    together = in_a_fork(row, base / "row")
    print(json.dumps([[*run, alone[run], found] for run, found in zip(row, together, strict=True)]))


if __name__ == "__main__":
    main()
