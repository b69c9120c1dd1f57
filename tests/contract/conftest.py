"""A small run as a fixture, for the tests of whole runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Result
from tests.contract.runs import SMALL, Run


@pytest.fixture
def run(cli: Callable[..., Result], tmp_path: Path) -> Run:
    """``run(*overrides, root=...)``: a small run, which must succeed unless ``code`` says otherwise."""

    def call(*overrides: str, root: Path = tmp_path, code: int = 0) -> Result:
        result = cli(
            *[o for o in overrides if o == "-m"], *SMALL, f"paths.root={root}", *[o for o in overrides if o != "-m"]
        )
        assert result.code == code, result
        if code:
            assert "Traceback" not in result.err
        return result

    return call
