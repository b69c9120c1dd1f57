"""Tuning: every method gets the same number of learning rates on the selection split; the best one is written down.

    python -m benchmarks.learning_rates                  # all methods of the reference table
    python -m benchmarks.learning_rates lora altlora     # some of them (several processes may share the work)
    python -m benchmarks.learning_rates --write          # write the winners to conf/tuned/mini/glue/

Runs are ordinary runs below ``results/tuning`` with a seed of their own (100), so that none of them is a run of the
table; finished ones are skipped. The score of a learning rate is the selection split's primary metric after the last
step, averaged over ``SUBSETS``; the third sub-task takes what they choose. Test splits play no part.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from lrx import config, launch
from lrx.paths import conf_dir
from lrx.results.record import read, record_path

RATES = {
    "head": [1e-3, 3e-3, 1e-2],
    "full": [1e-4, 3e-4, 1e-3],
    "lora": [1e-3, 3e-3, 1e-2],
    "altlora": [3.0, 10.0, 30.0],
    "altlora_plus": [1e-3, 3e-3, 1e-2],
}
SUBSETS = ("sentiment", "intensity")  # a classification and a regression, one trial each
COMMON = ["seed=100", "logger=none", "trainer.evaluations=1", "task.eval_limit=500"]


def overrides(method: str, rate: float, subset: str, root: str) -> list[str]:
    """The command line of one trial."""
    return [f"method={method}", f"method.lr={rate}", f"task.subset=[{subset}]", *COMMON, f"paths.root={root}"]


def score(method: str, rate: float, root: str) -> float | None:
    """Mean selection score of the trials of a rate, None if one has not been run or did not finish."""
    scores = []
    for subset in SUBSETS:
        settings = config.settings_of(config.compose(overrides(method, rate, subset, root)))
        path = record_path(root, config.run_id(settings))
        if not path.exists() or (record := read(path)).status != "finished":
            return None
        part = record.parts[subset]
        scores.append(part.last["select"][part.primary])
    return sum(scores) / len(scores)


def write_winner(method: str, rate: float, scores: dict[float, float | None]) -> Path:
    """Put ``rate`` into the method's tuned file, and the scores it was chosen by into its comment."""
    path = conf_dir() / "tuned" / "mini" / "glue" / f"{method}.yaml"
    settings = re.sub(r"\blr: [0-9.e+-]+", f"lr: {rate:g}", path.read_text().splitlines()[-1], count=1)
    shown = ", ".join(f"{r:g}: {'failed' if s is None else f'{100 * s:.1f}'}" for r, s in scores.items())
    command = "python -m benchmarks.learning_rates --write"
    comment = f"# For MiniLM on the embedded sub-tasks. {command}; mean selection score of each lr:\n# {shown}"
    path.write_text(f"# @package _global_\n{comment}\n{settings}\n")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", default=list(RATES), metavar="METHOD")
    parser.add_argument("--root", default="results/tuning")
    parser.add_argument("--write", action="store_true", help="write the winners")
    options = parser.parse_args()
    for method in options.methods:
        for rate in RATES[method]:
            for subset in SUBSETS:
                code = launch.main(overrides(method, rate, subset, options.root))
                if code >= 128:  # ended by a signal, and so is this program
                    raise SystemExit(code)
    for method in options.methods:
        scores = {rate: score(method, rate, options.root) for rate in RATES[method]}
        done = {rate: value for rate, value in scores.items() if value is not None}
        print(f"{method:<13}", "  ".join(f"{r:g}: {'-' if s is None else f'{100 * s:.2f}'}" for r, s in scores.items()))
        if options.write and len(done) == len(scores):
            print("  wrote", write_winner(method, max(done, key=lambda rate: done[rate]), scores))


if __name__ == "__main__":
    main()
