"""Fair tuning: every method of a sweep gets the same number of trials on the selection split. Imports no torch.

``space`` says what is tuned and between what, ``proposal`` which values come next, ``journal`` keeps the trials on
disk, ``command`` runs them, ``winners`` writes the best into ``conf/tuned``, ``provenance`` says in tables and runs
where tuned values come from.
"""

from lrx.tuning.provenance import caption, mismatch, notes

__all__ = ["caption", "mismatch", "notes"]
