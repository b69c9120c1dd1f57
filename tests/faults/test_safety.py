"""A configuration cannot run code. Each hostile case would leave a marker if code ran, and none does."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lrx import config as lrx_config
from lrx import safety
from lrx.errors import UserError
from lrx.results.record import read
from lrx.safety import OBSERVERS
from tests.conftest import ROOT
from tests.faults.hostile import Evil, refused

# What passes Hydra's own blocklist and still does something, and some that it stops; each would leave a marker.
TARGETS = {
    "open": "{_target_: builtins.open, file: MARKER, mode: w}",
    "copy": "{_target_: shutil.copy, src: /etc/hostname, dst: MARKER}",
    "system": "{_target_: os.system, command: 'touch MARKER'}",
    "mkdir": "{_target_: os.mkdir, path: MARKER}",
    "torch": "{_target_: torch.save, obj: {}, f: MARKER}",
    "touch": "{_target_: subprocess.run, args: [touch, MARKER]}",
    "numpy": "{_target_: numpy.save, file: MARKER, arr: [1]}",
    "filelock": "{_target_: filelock.FileLock, lock_file: MARKER}",
    "handler": "{_target_: logging.FileHandler, filename: MARKER}",
}


def test_the_targets_would_leave_a_marker(tmp_path: Path) -> None:
    """At least these run under the installed Hydra: the refusals below are not its doing."""
    from hydra.utils import instantiate

    for name in ("open", "copy", "mkdir", "torch", "handler"):
        marker = tmp_path / name
        instantiate(OmegaConf.create(TARGETS[name].replace("MARKER", str(marker))))
        assert marker.exists(), name


PLACES = [
    *("+callbacks.extra.x", "+hydra.callbacks.x", "+hydra.launcher.x", "+hydra.sweeper.x"),
    *("+method.options.x", "+model.config.x", "+x.y"),
]


@pytest.mark.parametrize(
    ("place", "name"),
    [
        *((place, "open") for place in PLACES),
        *(pytest.param("+callbacks.extra.x", name, marks=pytest.mark.slow) for name in TARGETS),
        *(pytest.param("+hydra.callbacks.x", name, marks=pytest.mark.slow) for name in TARGETS),
    ],
)
def test_a_foreign_target_on_the_command_line(cli, smoke, tmp_path, name: str, place: str) -> None:
    marker = tmp_path / "marker"
    value = TARGETS[name].replace("MARKER", str(marker))
    refused(cli("method=peft", *smoke, f"{place}={value}"), marker, "refused")
    assert not list(tmp_path.glob("records/*"))


SECTION = [
    "hydra.launcher._target_=builtins.open",
    "hydra.sweeper._target_=os.system",
    "+hydra.job_logging.handlers.x={'()': builtins.open, file: MARKER, mode: w}",
    "+hydra.hydra_logging.formatters.x={'()': builtins.open, file: MARKER, mode: w}",
    "hydra.job_logging.handlers.file.filename=MARKER",
    "hydra.job_logging.handlers.console.stream=ext://os.environ",
    "+hydra.job_logging.handlers.console.level='${oc.env:HOME}'",
    "+hydra.callbacks='${oc.create:{x: {_target_: builtins.open, file: MARKER, mode: w}}}'",
    "+callbacks.extra='${oc.create:{x: {_target_: builtins.open, file: MARKER, mode: w}}}'",
    "hydra.searchpath=[pkg://evil]",
    # the same ways by other keys
    pytest.param(
        "+hydra.job_logging.handlers.x={class: logging.FileHandler, filename: MARKER}", marks=pytest.mark.slow
    ),
    pytest.param("+hydra.hydra_logging.handlers.x={'()': os.mkdir, path: MARKER}", marks=pytest.mark.slow),
    pytest.param("+hydra.job_logging.filters.x={'()': builtins.open, file: MARKER, mode: w}", marks=pytest.mark.slow),
    pytest.param(
        "+hydra.job_logging.handlers.x={class: logging.handlers.RotatingFileHandler, filename: MARKER}",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        "hydra.job_logging.handlers.file.filename='${hydra.runtime.output_dir}/../../marker.log'",
        marks=pytest.mark.slow,
    ),
    pytest.param("hydra.job_logging=nothing", marks=pytest.mark.slow),
    pytest.param("+hydra.job.env_set.LD_PRELOAD=MARKER", marks=pytest.mark.slow),
    pytest.param("+callbacks.extra='${oc.${name}:x}'", marks=pytest.mark.slow),
    pytest.param("hydra.sweeper='${callbacks}'", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("override", SECTION)
@pytest.mark.parametrize("multirun", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_hydra_s_own_section(cli, smoke, tmp_path, override: str, multirun: bool) -> None:
    marker = tmp_path / "marker"
    flags = ["-m", "seed=0,1"] if multirun else []
    shown = cli(*flags, "method=lora", *smoke, override.replace("MARKER", str(marker)))
    assert not list(tmp_path.rglob("marker*")), shown
    assert shown.code == 2, shown
    assert len(shown.err.strip().splitlines()) == 1, shown
    assert not list(tmp_path.glob("records/*"))


FILES = {
    "callbacks/evil": "defaults: [default, _self_]\nextra: {x: TARGET}\n",
    "method/evil": "defaults: [lora, _self_]\noptions: TARGET\n",
    "task/evil": "# @package _global_\ndefaults: [glue@task]\nhydra: {callbacks: {x: TARGET}}\n",
    "trainer/evil": "defaults: [cpu, _self_]\nx: [1, {y: TARGET}]\n",
    "logger/evil": "# @package _global_\nlogger: {kind: none}\nhydra: {job_logging: {handlers: {x: FACTORY}}}\n",
    "model/evil": "defaults: [tiny_bert, _self_]\nx: !!python/object/apply:os.mkdir ['MARKER']\n",
    "sweeps/evil": "# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: {seed: '0,1'}, x: TARGET}}\n",
    "hydra/callbacks/evil": "# @package _global_\nhydra: {callbacks: {x: TARGET}}\n",
}


@pytest.mark.parametrize("file", FILES)
def test_a_file_of_somebody_else(cli, smoke, tmp_path, file: str) -> None:
    marker = tmp_path / "marker"
    text = FILES[file].replace("TARGET", TARGETS["open"])
    text = text.replace("FACTORY", "{'()': builtins.open, file: MARKER, mode: w}").replace("MARKER", str(marker))
    path = tmp_path / "conf" / f"{file}.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    group = file.rpartition("/")[0]
    override = f"{'+' if group in ('sweeps', 'hydra/callbacks') else ''}{group}=evil"
    words = [each for each in smoke if not each.startswith(f"{group}=")]
    refused(cli("--config-dir", str(tmp_path / "conf"), "method=lora", *words, override), marker)


def test_a_primary_config_of_somebody_else(cli, tmp_path) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "__init__.py").write_text(f"open({str(marker)!r}, 'w')\n")
    (tmp_path / "mine.yaml").write_text("defaults: [config, _self_]\nhydra: {searchpath: ['pkg://evil']}\n")
    sys.path.insert(0, str(tmp_path))
    try:
        shown = cli("--config-dir", str(tmp_path), "--config-name", "mine")
        refused(shown, marker, "file://")
        refused(cli("--config-path", "pkg://evil"), marker)
    finally:
        sys.path.remove(str(tmp_path))


@pytest.mark.parametrize("way", ["", "--cfg=job", pytest.param("--cfg=all", marks=pytest.mark.slow)])
def test_an_environment_variable_cannot_get_into_a_record(cli, smoke, tmp_path, monkeypatch, way: str) -> None:
    monkeypatch.setenv("MY_API_KEY", "s3cr3t")
    monkeypatch.setenv("MY_NAME", "s3cr3t")
    flags = [way] if way else []
    for override in (
        "+logger.project='${oc.env:MY_NAME}'",
        "task.data_dir='${oc.env:MY_API_KEY}'",
        "+model.config.x='${oc.env:MY_NAME}'",
        "paths.root='${oc.env:${oc.select:x,MY_API_KEY}}'",
        "+logger.project='${oc.decode:${oc.env:MY_NAME}}'",
    ):
        shown = cli(*flags, "method=lora", *smoke, override)
        refused(shown, tmp_path / "marker", "refused")
        assert "s3cr3t" not in shown.out + shown.err
    monkeypatch.setenv("MY_RESULTS", str(tmp_path / "mine"))
    settings = lrx_config.settings_of(lrx_config.compose(["paths.root=${oc.env:MY_RESULTS}"]))
    assert settings.paths.root == tmp_path / "mine"


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("{_target_: pytorch_lightning.callbacks.LambdaCallback}", ["LambdaCallback", "refused"]),
        ("{_target_: pytorch_lightning.callbacks.ModelCheckpoint, dirpath: MARKER}", ["refused", "only look"]),
        ("{_target_: pytorch_lightning.callbacks.EarlyStopping, monitor: x}", ["refused", "only look"]),
        ("{_target_: pytorch_lightning.callbacks.DeviceStatsMonitr}", ["did you mean 'DeviceStatsMonitor'"]),
        ("{_target_: pytorch_lightning.callbacks.timer.time.sleep, secs: 1}", ["refused"]),
        ("{_target_: torch.optim.AdamW, lr: 1}", ["refused"]),
        ("{_target_: lrx.callbacks.Costs}", ["refused"]),
        ("{_target_: pytorch_lightning.callbacks.ModelSummary, _partial_: true}", ["_partial_", "refused"]),
        ("{_target_: pytorch_lightning.callbacks.ModelSummary, _args_: [1]}", ["_args_", "refused"]),
        ("{_target_: pytorch_lightning.callbacks.ModelSummary, _recursive_: false}", ["_recursive_", "refused"]),
        ("{_target_: pytorch_lightning.callbacks.ModelSummary, max_depth: {_target_: os.getcwd}}", ["refused"]),
        ("{_target_: pytorch_lightning.callbacks.DeviceStatsMonitor, depth: 1}", ["callbacks.extra.x", "depth"]),
        ("{_target_: [os.system]}", ["callbacks.extra.x._target_"]),
        ("{_target_: '${method.name}'}", ["callbacks.extra.x._target_"]),
        ("{max_depth: 1}", ["callbacks.extra.x._target_"]),
        ("5", ["callbacks.extra"]),
    ],
)
def test_extra_callbacks_that_are_refused(cli, smoke, tmp_path, section: str, words: list[str]) -> None:
    marker = tmp_path / "marker"
    shown = cli("method=lora", *smoke, f"+callbacks.extra.x={section.replace('MARKER', str(marker))}")
    refused(shown, marker, *words)


def test_extra_callbacks_look_and_change_nothing(cli, smoke, tmp_path) -> None:
    assert cli("method=lora", *smoke).code == 0
    (path,) = tmp_path.glob("records/*.json")
    plain = read(path).parts["sentiment"].metrics
    extra = [
        f"+callbacks.extra.{name}={{_target_: {package}.callbacks.{name}}}"
        for name, package in zip(OBSERVERS, ["pytorch_lightning", "lightning.pytorch"] * 2, strict=True)
    ]
    shown = cli("method=lora", *smoke, "rerun=all", "logger.every_n_steps=2", *extra)
    assert shown.code == 0, shown
    (path,) = tmp_path.glob("records/*.json")  # the same run
    assert read(path).parts["sentiment"].metrics == plain
    (log,) = tmp_path.glob("runs/*/sentiment/extra.jsonl")
    keys = {key for line in log.read_text().splitlines() for key in json.loads(line)}
    assert any(key.startswith("lr-") for key in keys)
    assert any("DeviceStatsMonitor" in key for key in keys)


def test_a_pickled_configuration(cli, tmp_path) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "config.pickle").write_bytes(pickle.dumps(Evil(marker)))
    refused(cli(f"--experimental-rerun={tmp_path / 'config.pickle'}"), marker, "pickle")
    refused(cli("--experimental-rerun", str(tmp_path / "config.pickle")), marker, "pickle")


def test_nothing_asks_for_code_of_a_model_or_for_pickles() -> None:
    for path in [*ROOT.glob("lrx/**/*.py"), ROOT / "run.py"]:
        text = path.read_text()
        assert "trust_remote_code=True" not in text, path
        assert "weights_only=False" not in text, path
        assert "import pickle" not in text, path


@pytest.mark.parametrize(
    "override",
    [
        "method=../../evil", "+sweeps=../evil", "method=/etc/passwd", "model=..", "task='a/../../b'",
        "method=lo\x00ra", "method=lo\nra", "method='\x1b[31m'", "method=löra", "method=" + "x" * 300,
        "seed=" + "9" * 300, "+" + "k" * 300 + "=1", "task.subset=" + "x" * 300, "task.subset=../../x",
        "paths.root=''", "method=[lora]", "=", "method.lr=1e400", "\u202e=1", "a.b.c.d=1",
    ],
)  # fmt: skip
def test_strange_overrides_are_one_line(cli, smoke, tmp_path, override: str) -> None:
    (tmp_path / "evil.yaml").write_text("name: evil\n")
    shown = cli(
        "method=lora", *[each for each in smoke if not override.startswith("paths") or "paths" not in each], override
    )
    assert shown.code == 2, shown
    assert len(shown.err.strip().splitlines()) == 1, shown
    assert "Traceback" not in shown.err
    assert len(shown.err) < 1500
    assert not list(tmp_path.glob("records/*"))


@pytest.mark.parametrize(
    "name",
    [
        "../../../escape",
        "x" * 300,
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("", "a/b", "naïve ✓", "\x1b[31mred", ".hidden", "CON", "a\nb")
        ),
    ],
)
def test_a_strange_model_name_stays_in_its_folder(cli, smoke, tmp_path, name: str) -> None:
    root = tmp_path / "root"
    (tmp_path / "conf" / "model").mkdir(parents=True)
    text = OmegaConf.to_yaml({"defaults": ["tiny_bert", "_self_"], "name": name})
    (tmp_path / "conf" / "model" / "mine.yaml").write_text(text)
    before = set(tmp_path.rglob("*"))
    words = [*smoke[:-1], f"paths.root={root}", "trainer.max_steps=1", "model=mine"]
    shown = cli("--config-dir", str(tmp_path / "conf"), "method=lora", *words)
    assert shown.code in (0, 2), shown
    assert len(shown.err.strip().splitlines()) <= 1, shown
    made = set(tmp_path.rglob("*")) - before
    assert all(path == root or path.is_relative_to(root) for path in made)
    for record in root.glob("records/*.json"):
        assert record.name.isascii()
        assert read(record).model == name


def test_the_guard_is_where_hydra_composes() -> None:
    """If a new Hydra composed elsewhere, the wrapped functions would be gone or unused: this fails then."""
    seen: list[str] = []
    original = safety.check
    try:
        safety.check = lambda config: seen.append("callbacks" in config.hydra)  # type: ignore[assignment]
        from hydra import compose, initialize_config_dir

        lrx_config.register_resolvers()
        with (
            initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3"),
            safety.guarded(),
            safety.guarded(),
        ):
            compose("config")
        assert seen == [True]
        with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3"):
            compose("config")
        assert seen == [True]  # other programs' Hydra is left alone
    finally:
        safety.check = original


def test_jobs_composed_by_the_engine_are_checked(tmp_path: Path) -> None:
    from lrx.engine.compose import Composer
    from lrx.engine.jobs import Mistake, make_all

    marker = tmp_path / "marker"
    value = TARGETS["open"].replace("MARKER", str(marker))
    made = make_all([["seed=0"], [f"+callbacks.extra.x={value}"]], Composer(), check=False)
    assert [isinstance(each, Mistake) for each in made] == [False, True]
    with pytest.raises(UserError, match="must not lead out of its folder"):
        make_all([["method=../x"]], Composer(), check=False)
    assert not marker.exists()


@pytest.mark.parametrize(
    "text",
    [
        "${a}",
        "${a.b[0]}/x",
        "plain",
        "a$b",
        "${hydra:job.num}",
        "${now:%Y-%m-%d}",
        "${oc.select:a,1}",
        "\\${oc.create:x}",
    ],
)
def test_harmless_text_passes(text: str) -> None:
    safety.check_text("x.y", text)


@pytest.mark.parametrize(
    "text", ["${oc.create:x}", "${oc.${b}:x}", "${a:${oc.create:x}}", "${eval:1}", "x ${oc.decode:${y}}", "${"]
)
def test_other_text_does_not(text: str) -> None:
    with pytest.raises(UserError, match=r"x\.y"):
        safety.check_text("x.y", text)


def test_the_check_is_cheap() -> None:
    """It stands before every start: a few milliseconds, and no import of torch."""
    code = (
        "import sys, time; from lrx import config, safety; c = config.compose(); safety.check(c);"
        "t = time.perf_counter();"
        "[safety.check(c) for _ in range(10)]; print((time.perf_counter() - t) / 10, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    seconds, torch_there = done.stdout.split()
    assert float(seconds) < 0.05
    assert torch_there == "False"
