"""METEOR 1.5 (Denkowski and Lavie 2014) by its own Java program; there is no other that gives the same numbers.

The program and its paraphrase table come with the package ``pycocoevalcap`` (``pip install lrx[meteor]``); ``java`` has
to be on the path. Without either METEOR is not computed, and never approximated.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

JAR = "meteor/meteor-1.5.jar"
HEAP = "-Xmx2G"
MOST_SECONDS = 900.0  # a split of 630 texts with 7 references each takes about 20


def missing() -> str | None:
    """What METEOR lacks here, or None where it can be computed."""
    if shutil.which("java") is None:
        return "java is not installed"
    return None if _jar() else f"no package pycocoevalcap with {JAR}"


def _jar() -> Path | None:
    found = importlib.util.find_spec("pycocoevalcap")  # the package itself is not imported
    for folder in (found.submodule_search_locations or ()) if found else ():
        if (path := Path(folder) / JAR).is_file():
            return path.resolve()
    return None


def meteor(hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> float:
    """The corpus score from 0 to 1, which is no mean over the segments. Tokens are those of ``lrx.nlg.ptb``.

    Raises ``RuntimeError`` where it is ``missing`` or the program fails.
    """
    jar = _jar()
    if (problem := missing()) or jar is None:
        raise RuntimeError(f"METEOR cannot be computed: {problem}")
    command = ["java", "-Dfile.encoding=UTF-8", HEAP, "-jar", jar.name, "-", "-", "-stdio", "-l", "en", "-norm"]
    process = subprocess.Popen(
        command, cwd=jar.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        encoding="utf-8",
    )  # fmt: skip
    limit = threading.Timer(MOST_SECONDS, process.kill)
    limit.start()
    try:
        with process:
            segments = list(zip(hypotheses, references, strict=True))
            counts = [_ask(process, _line(own, others)) for own, others in segments]
            return float(_ask(process, " ||| ".join(["EVAL", *counts]), skip=len(counts)))
    except (BrokenPipeError, ValueError) as error:
        raise RuntimeError(f"METEOR's Java program gave no score ({error}); is its memory of 2 GB free?") from None
    finally:
        limit.cancel()
        process.kill()


def _line(hypothesis: Sequence[str], references: Sequence[Sequence[str]]) -> str:
    """The program's own protocol; bars are its separator."""
    texts = [" ".join(tokens).replace("|||", "").replace("  ", " ") for tokens in (*references, hypothesis)]
    return " ||| ".join(["SCORE", *texts])


def _ask(process: subprocess.Popen[str], line: str, skip: int = 0) -> str:
    """What the program answers, after ``skip`` lines (the scores of the segments)."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    for _ in range(skip):
        process.stdout.readline()
    answer = process.stdout.readline().strip()
    if not answer:
        raise ValueError("no answer")
    return answer
