"""The errors a user can cause. Each is printed as one line: what is wrong, where, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input or an unusable environment. The command line prints the message alone and exits with 2."""


class Busy(UserError):
    """Another process is at work on this very run."""


class RunFailed(Exception):
    """A run that started and did not finish (diverged, out of memory, ...). Exit code 1; a record holds the outcome.

    ``outcome`` is the record's status: ``failed``, ``diverged``, ``out_of_memory`` or ``interrupted``.
    """

    def __init__(self, message: str, outcome: str = "failed") -> None:
        super().__init__(message)
        self.outcome = outcome


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """``"did you mean 'altlora'? (choices: ...)"`` for the nearest of ``choices``, or the choices alone."""
    names = sorted(set(choices))
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    listing = f"choices: {', '.join(names)}" if names else "there are none"
    return f"did you mean {near[0]!r}? ({listing})" if near else f"({listing})"
