"""Composing many jobs with shared merges gives what Hydra composes one by one."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lrx import config as lrx_config
from lrx.engine.compose import Composer, expand
from lrx.engine.jobs import Job, Mistake, make_all
from lrx.paths import conf_dir, sweeps_dir

METHODS = sorted(path.stem for path in (conf_dir() / "method").glob("*.yaml"))


def plain(config: object) -> dict:
    found = OmegaConf.to_container(config, resolve=True)  # type: ignore[arg-type]
    assert isinstance(found, dict)
    found.pop("hydra", None)
    if isinstance(found.get("sweep"), dict):
        found["sweep"] = {"name": found["sweep"]["name"]}
    return found


def cases() -> list[list[str]]:
    orders = [["method=lora", "method.lr=0.1", "seed=3"], ["seed=3", "method.lr=0.1", "method=lora"]]
    scales = [
        [f"method={m}", f"scale={s}", "seed=1"] for m, s in itertools.product(METHODS, ("smoke", "mini", "paper"))
    ]
    sweeps = [[f"+sweeps={path.stem}", "seed=2", "method=head"] for path in sweeps_dir().glob("*.yaml")]
    other = [
        ["model=t5_base", "scale=paper", "task.subset=[cola,rte]"],
        ["method=peft", "method.tuner=adalora", "+method.options.init_r=12"],
        ["trainer=gpu", "logger=none", "trainer.max_steps=7"],
        ["callbacks=default", "callbacks.checkpoint.every_n_steps=3"],
        ["hydra.verbose=true", "method=lora"],
    ]
    return [*orders, *scales, *sweeps, *other]


def test_every_configuration_equals_hydras_own() -> None:
    composer = Composer()
    for overrides in [*cases(), *reversed(cases())]:  # what an earlier composition left must change no later one
        assert plain(composer(overrides)) == plain(lrx_config.compose(overrides)), overrides


@pytest.mark.parametrize(
    "overrides",
    [["method=lorra"], ["method.nothing=1"], ["+method.lr=1", "method=lora"], ["~method.nothing"], ["seed"]],
)
def test_mistakes_are_hydras_own(overrides: list[str]) -> None:
    composer = Composer()
    with pytest.raises(Exception) as ours:  # noqa: PT011 - compared with Hydra's own below
        composer(overrides)
    with pytest.raises(Exception) as theirs:  # noqa: PT011
        lrx_config.compose(overrides)
    assert (type(ours.value), str(ours.value)) == (type(theirs.value), str(theirs.value))


def test_a_mistake_in_one_job_leaves_the_others() -> None:
    made = make_all(expand(["method=lora,altlora", "method.rank=4,-1"]), Composer())
    assert [type(job) for job in made] == [Job, Job, Job, Job]  # what a class says of its values, the run finds out
    made = make_all(expand(["method=lora,head,full", "+method.momentum=0.5"]), Composer())
    assert all(isinstance(job, Mistake) and "has no such option" in job.message for job in made)
    made = make_all(expand(["method=lora", "method.rank=4,many,8"]), Composer())
    assert [type(job) for job in made] == [Job, Mistake, Job]


def test_overrides_that_do_not_compose_stop_everything() -> None:
    from hydra.errors import HydraException

    with pytest.raises(HydraException, match="lorra"):
        make_all(expand(["method=lora,lorra", "seed=0"]), Composer())


def test_identity_does_not_depend_on_where_and_how(tmp_path: Path) -> None:
    composer = Composer()
    lists = [["method=lora"], ["method=lora", "jobs=4"], ["method=lora", f"paths.root={tmp_path}", "logger=none"],
             ["method=lora", "fail_fast=true", "time_limit=3", "engine=inline"]]  # fmt: skip
    first, *others = make_all(lists, composer)
    assert isinstance(first, Job)
    assert all(isinstance(job, Job) and job.fingerprint == first.fingerprint for job in others)
