"""``python -m lrx tune SWEEP budget=N``: equal numbers of trials, resumable; winners to ``conf/tuned``."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lrx import paths
from lrx.errors import UserError
from lrx.results.sweep import Sweep, load
from lrx.tuning import show, winners
from lrx.tuning.journal import Journal, Study, Trial, opened, read
from lrx.tuning.judge import judge
from lrx.tuning.proposal import SPREAD, next_point
from lrx.tuning.targets import Target, targets

if TYPE_CHECKING:
    from rich.console import Console

    from lrx.engine.sweep import Outcome

Runner = Callable[[Sequence[Sequence[str]], int], "Outcome"]


@dataclass(frozen=True)
class Request:
    """What the command line asks for. ``methods``: rows or methods, all without any."""

    sweep: str
    budget: int | None = None
    jobs: int = 1
    methods: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    again: bool = False  # rerun=failed

    @property
    def command(self) -> str:
        """The command that gives the same values again, without what concerns this machine alone."""
        words = [f"budget={self.budget}", *([f"method={','.join(self.methods)}"] if self.methods else [])]
        return " ".join(["python -m lrx tune", self.sweep, *words, *(shlex.quote(word) for word in self.overrides)])


def parse(sweep: str, words: Sequence[str]) -> Request:
    """``["budget=3", "jobs=2", "method=lora,altlora", "scale=smoke"]`` as a request. Raises ``UserError``."""
    numbers: dict[str, int] = {}
    methods: list[str] = []
    overrides, again = [], False
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"{word}: expected KEY=VALUE, e.g. budget=3")
        if key in ("budget", "jobs"):
            if not value.isdigit() or int(value) < 1:
                raise UserError(f"{word}: expected a whole number, at least 1")
            numbers[key] = int(value)
        elif key == "rerun":
            if value not in ("none", "failed"):
                raise UserError(
                    f"{word}: expected rerun=failed, which repeats the trials that failed or ran out of memory"
                )
            again = value == "failed"
        elif key == "method":
            methods = [name for name in value.split(",") if name]
        else:
            overrides.append(word)
    return Request(sweep, numbers.get("budget"), numbers.get("jobs", 1), methods, overrides, again)


def tune(
    request: Request,
    root: Path,
    console: Console,
    *,
    to: Path | None = None,
    dry_run: bool = False,
    show_only: bool = False,
    runner: Runner | None = None,
) -> int:
    """Bring every chosen method to ``budget`` trials and write the winners; the exit code.

    ``root``: as ``paths.root``; trials go to ``root/tuning/SWEEP``. ``to``: in place of ``conf/tuned``. ``dry_run``:
    print the winners' files instead of writing them. ``runner``: carries out lists of overrides, so many at a time.
    """
    folder = root / "tuning" / request.sweep
    sweep = load(request.sweep)
    if show_only:
        return _show(sweep, folder, console)
    if request.budget is None:
        raise UserError("budget=N is missing: how many trials each method gets in all")
    chosen = targets(sweep, request.methods, request.overrides, folder)
    with opened(folder) as journal:
        pairs = [(target, journal.study(target.facts)) for target in chosen]
        code = _search(journal, pairs, request, folder, runner or _run, console)
        show.trials([study for _, study in pairs], folder, console)
        if code:
            return code
        _crown(pairs, request, to, dry_run, console)
        _compare(journal.studies(), [study for _, study in pairs], console)
    return 0


def _show(sweep: Sweep, folder: Path, console: Console) -> int:
    journal = read(folder)
    if journal is None:
        raise UserError(f"nothing has been tuned below {folder}; python -m lrx tune {sweep.name} budget=N does it")
    show.trials(journal.studies(), folder, console)
    return 0


def _search(
    journal: Journal,
    pairs: Sequence[tuple[Target, Study]],
    request: Request,
    folder: Path,
    runner: Runner,
    console: Console,
) -> int:
    """Ask, run and tell until every study has its budget; the exit code: 0, 1 when trials could not be run, 128 + n."""
    assert request.budget is not None
    for target, study in pairs if request.again else ():
        for trial in study.trials():
            if trial.outcome in ("failed", "out_of_memory"):  # what diverged or gave NaN would do so again
                study.repeat(target.space, trial)
    rerun = ["rerun=failed"] if request.again else []
    while True:
        for target, study in pairs:
            _ask(target, study, request.budget)
        journal.publish()
        work = [(trial, target, study) for target, study in pairs for trial in study.trials() if trial.is_open]
        if not work:
            return 0
        work.sort(key=lambda item: item[0].number)  # methods take turns: a tuning cut short is an even one, too
        console.print(f"{_trials(len(work))} to run, {sum(len(study.trials()) for _, study in pairs)} in all")
        lists = [[*words, *rerun] for trial, target, _ in work for words in target.overrides(trial.point)]
        outcome = runner(lists, request.jobs)
        still_open = [trial for trial, _, study in work if not _tell(study, trial, folder)]
        journal.publish()
        if outcome.signum is not None:
            console.print(f"interrupted: {_trials(len(still_open))} still open; the same command goes on")
            return 128 + outcome.signum
        if still_open:
            why = outcome.failed[0][1] if outcome.failed else "no record was left"
            console.print(f"{_trials(len(still_open))} could not be run, still open: {why}", style="red")
            return 1


def _ask(target: Target, study: Study, budget: int) -> None:
    """Begin the trials that depend on nothing that is still open."""
    while True:
        trials = study.trials()
        if len(trials) >= budget or (len(trials) >= SPREAD and any(trial.is_open for trial in trials)):
            return
        tried = [(trial.point, trial.score) for trial in trials]
        point = next_point(target.space, tried, target.present, target.facts.seeds[0])
        if point is None:
            return
        study.ask(target.space, point, target.run_ids(point))


def _tell(study: Study, trial: Trial, folder: Path) -> bool:
    judged = judge(trial, folder)
    if not judged.is_open:
        study.tell(judged)
    return not judged.is_open


def _crown(
    pairs: Sequence[tuple[Target, Study]], request: Request, to: Path | None, dry_run: bool, console: Console
) -> None:
    """Write or print each method's tuned file, and say what is doubtful about a winner."""
    home = to or paths.conf_dir() / "tuned"
    for target, study in pairs:
        trials = study.trials()[
            : request.budget
        ]  # trials beyond it, of an earlier larger budget, would be an advantage
        best = winners.winner(trials)
        if best is None:
            console.print(f"{target.facts.row}: no trial finished; nothing is written", style="red")
            continue
        path, shipped = home / target.file, paths.conf_dir() / "tuned" / target.file
        old = path if path.exists() else shipped
        content = winners.text(old, target.facts, target.space, trials, best, request.command)
        for line in winners.at_edge(best, trials, target.space):
            console.print(f"warning: {target.facts.row}: {line}", style="yellow")
        if dry_run:
            console.print(f"{path} (not written):\n{content}", markup=False)
        else:
            console.print(f"wrote {winners.write(path, content)}", markup=False)


def _compare(known: Sequence[Study], tuned: Sequence[Study], console: Console) -> None:
    """Warn when methods of the same setting have got different numbers of trials."""

    def setting(study: Study) -> tuple[object, ...]:
        facts = study.facts
        return facts.scale, facts.task, facts.model, facts.source, tuple(facts.seeds)

    settings = {setting(study) for study in tuned}
    counts = {study.facts.row: len(study.trials()) for study in known if setting(study) in settings}
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{row} {count}" for row, count in counts.items())
        console.print(f"warning: methods have different numbers of trials ({shown}); the same budget for all is fair",
                      style="yellow")  # fmt: skip


def _trials(count: int) -> str:
    return "one trial" if count == 1 else f"{count} trials"


def _run(lists: Sequence[Sequence[str]], jobs: int) -> Outcome:
    from lrx.launch import run_list

    return run_list(lists, jobs=jobs)
