"""The documentation is true: links lead somewhere, commands compose, signatures are the code's, examples run."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from omegaconf import OmegaConf

from lrx import __version__, desk, launch, registry, schema
from lrx import config as lrx_config
from lrx.__main__ import app
from lrx.results import sweep as sweeps
from lrx.results.record import read
from tests.conftest import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "results" / "README.md"])
# What the examples of a page create, what runs create, and what only stands for something.
EXAMPLES = ("lora_fa", "tsv_classes", "bag_of_words", "my_bert", "my_lora")
GENERATED = ("results/", ".venv", "conf/tuned/")
SUFFIXES = (".py", ".md", ".yaml", ".toml", ".lock", ".cff", ".txt", "/", "Makefile", "LICENSE")


def fences(page: Path) -> list[tuple[str, str, str]]:
    """(language, path named on the line before, code) of every fenced block."""
    found = re.findall(r"(?:^`([^`\n]+)`:\n\n)?^```(\w*)\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [(language, path, code) for path, language, code in found]


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands(page: Path) -> Iterator[list[str]]:
    """Every command line of ours: the lines of shell blocks, and what stands in backticks."""
    lines = [line for language, _, code in fences(page) if language == "bash" for line in code.splitlines()]
    for line in [*lines, *re.findall(r"`((?:python|lrx|make) [^`]+)`", prose(page))]:
        words = shlex.split(line, comments=True)
        ours = (["python", "run.py"], ["python", "-m", "lrx"], ["lrx"], ["make"])
        if any(words[: len(start)] == start for start in ours):
            yield words


COMMANDS = list(
    {(page.relative_to(ROOT).as_posix(), *words): None for page in PAGES for words in commands(page)},
)


def test_there_is_something_to_check() -> None:
    assert len(PAGES) >= 8
    assert len(COMMANDS) > 40


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        goal = (page.parent / file).resolve() if file else page
        assert goal.exists(), f"{page}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", goal.read_text(), flags=re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_named_in_backticks_exist(page: Path) -> None:
    for token in re.findall(r"`([^`\s]+)`", prose(page)):
        looks_like_a_file = token.endswith(SUFFIXES) and re.fullmatch(r"[\w./*-]+", token)
        full = f"results/{token}" if page.parent.name == "results" else token
        if not looks_like_a_file or full.startswith(GENERATED) or any(name in token for name in (*EXAMPLES, "NAME")):
            continue
        found = [here for here in (ROOT, page.parent) if any(here.glob(token.rstrip("/")))]
        bare = "/" not in token.rstrip("/") and any(ROOT.rglob(token.rstrip("/")))
        generated = token in {
            "traceback.txt",
            "part.json",
            "metrics.jsonl",
            "records.jsonl",
            "table.md",
            "table.tex",
            "table.csv",
        }
        assert found or bare or generated, f"{page}: {token}"


@pytest.mark.parametrize("line", COMMANDS, ids=" ".join)
def test_commands_compose_or_parse(line: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, *words = line
    if words[0] == "make":
        for target in words[1:]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), target
        return
    arguments = words[1:] if words[0] == "lrx" else words[3:]
    if words[:2] == ["python", "run.py"]:
        arguments = ["run", *words[2:]]
    if len(arguments) < 2 or arguments[1] == "...":  # a verb that prose speaks of
        assert not arguments or arguments[0] in typer.main.get_command(app).commands
        return
    if any(name in " ".join(arguments) for name in EXAMPLES):
        install_examples(ROOT / page, tmp_path, monkeypatch)
    if arguments[0] == "run":
        compose(arguments[1:], tmp_path)
    else:
        parse(arguments, tmp_path)


def compose(arguments: list[str], tree: Path) -> None:
    """Compose and validate each job, as far as no data is needed for it."""
    if {"--help", "--hydra-help", "-sc"} & set(arguments):
        return
    assert {word for word in arguments if word.startswith("-")} <= {"-m", "--cfg", "--config-dir"}
    flags = {"-m", *(pair[i] for pair in pairs_after(arguments, "--cfg", "--config-dir") for i in (0, 1))}
    overrides = [word for word in arguments if word not in flags]
    names = [word.removeprefix("+sweeps=") for word in overrides if word.startswith("+sweeps=")]
    if names:
        folder = tree / "sweeps" if (tree / "sweeps" / f"{names[0]}.yaml").exists() else None
        grid = sweeps.load(names[0], folder).grid
        overrides = [f"{k}={v}" for k, v in grid.items()] + [word for word in overrides if "+sweeps=" not in word]
    for job in split(overrides):
        settings_with(tree, job)


def pairs_after(arguments: list[str], *flags: str) -> list[tuple[str, str]]:
    return [(word, arguments[i + 1]) for i, word in enumerate(arguments) if word in flags]


def split(overrides: list[str]) -> list[list[str]]:
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    batches = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(overrides), None)
    return [list(job) for batch in batches for job in batch]


def settings_with(tree: Path, overrides: list[str]) -> schema.Settings:
    extra = [f"hydra.searchpath=[file://{tree / 'conf'}]"] if (tree / "conf").exists() else []
    return lrx_config.settings_of(lrx_config.compose([*extra, *overrides]))


def parse(arguments: list[str], tree: Path) -> None:
    """Parse a command of the desk, and look up the names in it."""
    group = typer.main.get_command(app)
    with group.make_context("lrx", list(arguments)) as context:
        name, command, rest = group.resolve_command(context, list(arguments))
        with command.make_context(name, list(rest), parent=context) as inner:
            given = inner.params
    if name == "list" and given["kind"]:
        assert given["kind"] in desk.KINDS
    if name == "info":
        assert given["name"] in {choice for kind in desk.KINDS for choice in desk.choices(kind)}
    if name in ("table", "status") and not given["sweep"].isupper():  # SWEEP: any of them
        sweeps.load(given["sweep"], tree / "sweeps" if (tree / "sweeps" / f"{given['sweep']}.yaml").exists() else None)


CONTRACTS = {
    "Method": "lrx/methods/base.py",
    "Model": "lrx/models/base.py",
    "Backbone": "lrx/models/base.py",
    "Task": "lrx/tasks/base.py",
    "Suite": "lrx/tasks/base.py",
    "RunRecord": "lrx/results/record.py",
    "Part": "lrx/results/record.py",
    "Supervised": "lrx/modules/supervised.py",
    "PairOptimizer": "lrx/nn/pair_optim.py",
    "Engine": "lrx/engine/sweep.py",
}


def documented_classes() -> dict[str, ast.ClassDef]:
    trees = [ast.parse(code) for language, _, code in fences(ROOT / "docs" / "design.md") if language == "python"]
    return {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}


def test_every_contract_is_documented() -> None:
    assert {"Method", "Model", "Backbone", "Task", "Suite", "Supervised", "RunRecord"} <= set(documented_classes())


@pytest.mark.parametrize("name", documented_classes())
def test_documented_signatures_are_the_code_s(name: str) -> None:
    """Each function and field shown for a class in docs/design.md stands there as it does in the source."""
    source = ast.parse((ROOT / CONTRACTS[name]).read_text())
    real = next(node for node in source.body if isinstance(node, ast.ClassDef) and node.name == name)
    functions = {node.name: node for node in real.body if isinstance(node, ast.FunctionDef)}
    fields = {ast.unparse(node.target): node for node in real.body if isinstance(node, ast.AnnAssign)}
    for node in documented_classes()[name].body:
        if isinstance(node, ast.FunctionDef):
            shown, actual = node, functions[node.name]
            assert ast.unparse(shown.args) == ast.unparse(actual.args), node.name
            assert ast.unparse(shown.returns or ast.Constant(0)) == ast.unparse(actual.returns or ast.Constant(0))
        elif isinstance(node, ast.AnnAssign):
            assert ast.unparse(node.annotation) == ast.unparse(fields[ast.unparse(node.target)].annotation)


def test_every_hook_of_a_method_is_documented() -> None:
    source = ast.parse((ROOT / CONTRACTS["Method"]).read_text())
    real = next(node for node in source.body if isinstance(node, ast.ClassDef) and node.name == "Method")
    hooks = {node.name for node in real.body if isinstance(node, ast.FunctionDef)}
    shown = {node.name for node in documented_classes()["Method"].body if isinstance(node, ast.FunctionDef)}
    assert hooks == shown


def test_what_is_cosmetic_is_documented() -> None:
    text = (ROOT / "docs" / "design.md").read_text()
    for name in (*lrx_config.COSMETIC, *(f"task.{key}" for key in lrx_config.COSMETIC_TASK)):
        assert f"`{name}`" in text, name


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = OmegaConf.load(ROOT / "CITATION.cff")
    assert project["version"] == __version__ == str(citation.version)
    assert project["license"] == citation.license == "Apache-2.0"
    assert f"[{__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text()


def test_nothing_of_the_machine_it_was_written_on() -> None:
    for page in [*PAGES, ROOT / "CITATION.cff"]:
        assert not re.search(r"(?<![\w.])/(tmp|home|root|work|mnt)/", page.read_text()), page


# The examples, put where the page says and found as an installed package's would be.


def install_examples(page: Path, tree: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Write the page's named blocks below ``tree`` and let lrx find them there; (path -> code)."""
    blocks = {path: code for _, path, code in fences(page) if path}
    points: dict[str, list[str]] = {}
    for path, code in blocks.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(code)
        if match := re.fullmatch(r"lrx/(methods|models|tasks|data)/(\w+)\.py", path):
            package = importlib.import_module(f"lrx.{match[1]}")
            monkeypatch.setattr(package, "__path__", [*package.__path__, str(tree / "lrx" / match[1])])
            if match[1] != "data":
                points.setdefault(f"lrx.{match[1]}", []).append(f"{match[2]} = lrx.{match[1]}.{match[2]}")
            monkeypatch.delitem(sys.modules, f"lrx.{match[1]}.{match[2]}", raising=False)
    register(tree, points, monkeypatch)
    return blocks


def register(tree: Path, points: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed distribution below ``tree`` with these entry points."""
    info = tree / "lrx_examples-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lrx-examples\nVersion: 0.1\n")
    text = "\n".join(line for group, lines in points.items() for line in (f"[{group}]", *lines))
    (info / "entry_points.txt").write_text(text + "\n")
    monkeypatch.syspath_prepend(str(tree))
    registry.entries.cache_clear()


@pytest.fixture(autouse=True)
def _fresh_registry() -> Iterator[None]:
    yield
    registry.entries.cache_clear()


def train(tree: Path, *overrides: str) -> None:
    """Two real steps through the front door, and a look at the record."""
    steps = ["scale=smoke", "trainer.max_steps=2", "trainer.evaluations=1"]
    common = ["--config-dir", str(tree / "conf"), *steps, "logger=none", f"paths.root={tree / 'out'}"]
    assert launch.main([*common, *overrides]) == 0
    (path,) = (tree / "out" / "records").glob("*.json")
    record = read(path)
    assert record.status == "finished"
    assert all(part.steps == 2 for part in record.parts.values())


def test_the_example_method_trains_from_a_package_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = {path: code for _, path, code in fences(ROOT / "docs" / "add-a-method.md") if path}
    project = tomllib.loads(blocks["my_lora/pyproject.toml"])
    assert project["tool"]["setuptools"]["py-modules"] == ["lora_fa"]
    (tmp_path / "lora_fa.py").write_text(blocks["lrx/methods/lora_fa.py"])
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "conf" / "method" / "lora_fa.yaml").write_text(blocks["conf/method/lora_fa.yaml"])
    points = project["project"]["entry-points"]["lrx.methods"]
    register(tmp_path, {"lrx.methods": [f"{name} = {module}" for name, module in points.items()]}, monkeypatch)
    monkeypatch.delitem(sys.modules, "lora_fa", raising=False)
    assert registry.find("methods", "lora_fa").path == tmp_path / "lora_fa.py"
    train(tmp_path, "method=lora_fa", "task.subset=sentiment")


def test_the_example_method_keeps_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.contract import test_methods as contract

    install_examples(ROOT / "docs" / "add-a-method.md", tmp_path, monkeypatch)
    monkeypatch.setattr(contract, "CONF", tmp_path / "conf" / "method")
    monkeypatch.setitem(contract.CASES, "lora_fa", ("lora_fa", {}))
    contract.test_yaml_is_the_constructor("lora_fa")
    tests = [value for name, value in vars(contract).items() if name.startswith("test_")]
    checks = [test for test in tests if list(inspect.signature(test).parameters) == ["case"]]
    assert len(checks) >= 8
    for check in checks:
        check("lora_fa")


def test_the_example_oracle_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = install_examples(ROOT / "docs" / "add-a-method.md", tmp_path, monkeypatch)
    space: dict[str, object] = {"__name__": "oracle"}
    exec(compile(blocks["tests/oracles/test_lora_fa.py"], "test_lora_fa.py", "exec"), space)
    tests = [value for name, value in space.items() if name.startswith("test_")]
    assert tests
    for test in tests:
        test()  # type: ignore[operator]


def test_the_example_sweep_is_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_examples(ROOT / "docs" / "add-a-method.md", tmp_path, monkeypatch)
    sweep = sweeps.load("lora_fa_glue", tmp_path / "sweeps")
    assert {row.method for row in sweep.rows} == set(sweep.grid["method"].split(","))


def test_the_example_task_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_examples(ROOT / "docs" / "add-a-task.md", tmp_path, monkeypatch)
    for split, count in (("train", 60), ("test", 20)):
        rows = [f"{i % 2}\tFilm number {i} is {'good' if i % 2 else 'bad'}." for i in range(count)]
        (tmp_path / f"{split}.tsv").write_text("\n".join(rows) + "\n")
    chosen = ["task=tsv_classes", f"task.data_dir={tmp_path}"]
    train(tmp_path, *chosen)
    identity = lrx_config.fingerprint(settings_with(tmp_path, [*chosen, "scale=smoke"]))
    (tmp_path / "test.tsv").write_text("0\tAnother film.\n")
    assert lrx_config.fingerprint(settings_with(tmp_path, [*chosen, "scale=smoke"])) != identity


def test_the_example_model_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_examples(ROOT / "docs" / "add-a-model.md", tmp_path, monkeypatch)
    train(tmp_path, "model=bag_of_words", "method.target_modules=[mlp_in]", "task.subset=sentiment")
