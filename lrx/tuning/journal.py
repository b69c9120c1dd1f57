"""The trials of a sweep on disk: Optuna's journal, one study for each method, filled by ask and tell.

``<root>/tuning/<sweep>/journal.log`` is the truth about what was asked and told; the runs of the trials lie beside it
as ordinary runs. ``trials.json`` is written anew after each change for readers that do without Optuna (plots, report).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrx.errors import Busy, UserError
from lrx.files import cannot, read_text, write_atomic
from lrx.tuning.proposal import distributions, stored
from lrx.tuning.space import Point, Space

if TYPE_CHECKING:
    import optuna

OPEN = "open"  # asked and not yet told: waiting, running, or left by a kill


@dataclass(frozen=True)
class Trial:
    """One trial. ``score``: higher is better, None unless ``outcome`` is ``finished``; ``parts``: as measured."""

    number: int
    point: Point
    runs: list[str] = field(default_factory=list)  # run ids, one for each seed
    outcome: str = OPEN  # open, finished, nan, failed, diverged, out_of_memory
    score: float | None = None
    parts: dict[str, float] = field(default_factory=dict)
    message: str = ""

    @property
    def is_open(self) -> bool:
        return self.outcome == OPEN


@dataclass(frozen=True)
class Facts:
    """What a study is about; the same for all its trials. ``key``: digest of everything that is not tuned."""

    key: str
    sweep: str
    row: str
    label: str
    method: str
    model: str
    task: str
    source: str
    scale: str
    seeds: list[int]
    space: dict[str, dict[str, Any]]

    @property
    def name(self) -> str:
        return f"{self.row}-{self.scale}-{self.key[:10]}"


class Journal:
    """The studies of a sweep. Open one with ``opened`` (which locks it) or ``read``."""

    def __init__(self, folder: Path) -> None:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.folder = folder
        backend = JournalFileBackend(str(folder / "journal.log"), lock_obj=_our_own_lock())
        try:
            self.storage = JournalStorage(backend)
        except (ValueError, KeyError) as error:  # json.JSONDecodeError is a ValueError
            raise UserError(
                f"{folder / 'journal.log'} is damaged ({error}); move it away: finished trials are then found by their "
                "records and not run again"
            ) from None

    def study(self, facts: Facts) -> Study:
        """The study of these facts, made when there is none."""
        import optuna

        found = optuna.create_study(
            storage=self.storage, study_name=facts.name, direction="maximize", load_if_exists=True
        )
        if found.user_attrs.get("facts") != asdict(facts):  # a new study, or its space has been changed
            found.set_user_attr("facts", asdict(facts))
        return Study(found, facts)

    def studies(self) -> list[Study]:
        """All studies, in the order they were begun."""
        import optuna

        found = [optuna.load_study(storage=self.storage, study_name=name)
                 for name in optuna.get_all_study_names(self.storage)]  # fmt: skip
        return [Study(each, Facts(**each.user_attrs["facts"])) for each in found if "facts" in each.user_attrs]

    def publish(self) -> None:
        """Write ``trials.json``."""
        studies = [{**asdict(s.facts), "trials": [asdict(trial) for trial in s.trials()]} for s in self.studies()]
        write_atomic(self.folder / "trials.json", json.dumps({"studies": studies}, indent=1))


class Study:
    """The trials of one method."""

    def __init__(self, study: optuna.Study, facts: Facts) -> None:
        self._study, self.facts = study, facts

    def trials(self) -> list[Trial]:
        """In the order they were asked; one that was repeated is left out, and its successor stands in its place."""
        found = []
        asked = {trial.number: trial for trial in self._study.get_trials(deepcopy=False)}
        successors = {trial.user_attrs["repeats"]: number for number, trial in asked.items()}
        for number in sorted(asked.keys() - {new for old, new in successors.items() if old is not None}):
            while number in successors:
                number = successors[number]
            trial = asked[number]
            told = self._study.user_attrs.get(f"told {trial.number}", {}) if trial.state.is_finished() else {}
            found.append(Trial(trial.number, trial.user_attrs["point"], trial.user_attrs["runs"], **told))
        return found

    def ask(self, space: Space, point: Point, runs: list[str], repeats: int | None = None) -> None:
        """Begin a trial of these values: it counts from now on, whatever happens to this process."""
        # The values stand in the enqueued trial, which is one line of the journal: a kill leaves all of them or none.
        facts = {"point": point, "runs": runs, "repeats": repeats}
        self._study.enqueue_trial(stored(space, point), user_attrs=facts)
        self._study.ask(distributions(space))

    def repeat(self, space: Space, trial: Trial) -> None:
        """Ask the values of a failed trial again: the new one takes its place in the budget, the journal keeps both."""
        self.ask(space, trial.point, trial.runs, repeats=trial.number)

    def tell(self, trial: Trial) -> None:
        """Store the outcome of an open trial. Told twice after a kill between the two lines, it is the same."""
        import optuna

        if self._study.get_trials(deepcopy=False)[trial.number].state == optuna.trial.TrialState.WAITING:
            self._study.ask()  # a kill came between the two lines of ``ask``
        told = {"outcome": trial.outcome, "score": trial.score, "parts": trial.parts, "message": trial.message}
        self._study.set_user_attr(f"told {trial.number}", told)
        good = trial.score is not None
        state = optuna.trial.TrialState.COMPLETE if good else optuna.trial.TrialState.FAIL
        self._study.tell(trial.number, values=trial.score if good else None, state=state)


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Journal]:
    """The journal below ``folder``, locked: one process tunes a sweep, and the system frees the lock when it ends.

    Raises ``Busy`` when another process tunes this sweep, ``UserError`` when the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        _mend(folder / "journal.log")
    except Timeout:
        raise Busy(f"another process is tuning this sweep (lock {folder / '.lock'}); wait for it") from None
    except OSError as error:
        raise cannot("write", folder, error) from None
    try:
        yield Journal(folder)
    finally:
        lock.release()


def read(folder: Path) -> Journal | None:
    """The journal below ``folder`` for reading, or None when nothing has been tuned."""
    return Journal(folder) if (folder / "journal.log").exists() else None


def published(path: Path) -> dict[str, Any]:
    """What ``trials.json`` holds: ``{"studies": [{facts, "trials": [...]}]}``. Needs no Optuna."""
    try:
        raw = json.loads(read_text(path))
        for study in raw["studies"]:
            study["trials"] = [Trial(**trial) for trial in study["trials"]]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: no list of trials ({error}); delete it, the next tuning writes it anew") from None
    return raw


def _mend(path: Path) -> None:
    """Cut off a line that a kill left half written: appending to it would make the journal unreadable."""
    if not path.exists():
        return
    with path.open("rb+") as stream:
        content = stream.read()
        stream.truncate(content.rfind(b"\n") + 1)


def _our_own_lock() -> Any:
    """In place of Optuna's lock around each line, which a kill leaves behind for 30 s: ``opened`` holds one already."""

    class Held:
        def acquire(self) -> bool:
            return True

        def release(self) -> None:
            pass

    return Held()
