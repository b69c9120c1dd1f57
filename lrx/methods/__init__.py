"""One file per paper. ``base.py`` is the contract; the registry finds the files by name."""
