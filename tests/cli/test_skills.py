"""The skill library: stored by a run, listed, used by name, and what is said where that cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lrx import config, skills
from lrx.__main__ import main
from lrx.errors import UserError
from lrx.methods.psec import PSEC
from lrx.models.base import Inputs, Outputs
from lrx.models.diffusion_policy import DiffusionPolicy
from lrx.nn.skills import layers


def stored(folder: Path, name: str = "walk", width: int = 16, states: int = 4, **options: Any) -> PSEC:
    """A library with one skill of a tiny policy."""
    backbone = DiffusionPolicy(width=width, blocks=1).build(Inputs("state", features=states), Outputs("actions", 2), 0)
    chosen = {"new": ("imitation",), "compose": "fixed", "rank": 4, **options}
    method = PSEC(lr=1e-3, library=str(folder), save=name, **chosen)
    method.adapt(backbone, torch.Generator().manual_seed(0))
    for layer in layers(backbone.net).values():
        layer.mean_B.normal_(generator=torch.Generator().manual_seed(1))
    method.finish(backbone, {"task": "d4rl", "part": "hopper-medium", "run": "d4rl-hopper-psec-s0"})
    return method


def used(folder: Path, names: tuple[str, ...], states: int = 4, **options: Any) -> Any:
    backbone = DiffusionPolicy(width=16, blocks=1).build(Inputs("state", features=states), Outputs("actions", 2), 0)
    method = PSEC(lr=1e-3, library=str(folder), skills=names, new=(), **{"rank": 4, **options})
    method.adapt(backbone, torch.Generator().manual_seed(0))
    return backbone


def test_a_stored_skill_is_the_same_when_it_is_used(tmp_path: Path) -> None:
    stored(tmp_path)
    (skill,) = skills.load(["walk"], tmp_path)
    for name, layer in layers(used(tmp_path, ("walk",)).net).items():
        assert torch.equal(layer.mean_A[0], skill.tensors[f"{name}.A"])
        assert torch.equal(layer.mean_B[0], skill.tensors[f"{name}.B"])
        assert layer.mean_B[0].any()


def test_the_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["skills", "--root", str(tmp_path)]) == 0
    assert "no skill is stored" in capsys.readouterr().out
    stored(tmp_path / "skills")
    stored(tmp_path / "skills", "run", new=("reward",))
    assert main(["skills", "--root", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "task", "kind", "rank", "scale", "parameters", "run"]
    size = str(skills.about("run", tmp_path / "skills")["parameters"])
    assert lines[1].split() == ["run", "hopper-medium", "reward", "4", "16.0", size, "d4rl-hopper-psec-s0"]
    assert lines[2].split()[:3] == ["walk", "hopper-medium", "imitation"]
    (tmp_path / "skills" / "run.json").write_text("{")
    assert main(["skills", "--root", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "skipped" in out
    assert "walk" in out


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (("walc",), {}, "no skill is called 'walc' in .*did you mean 'walk'"),
        (("walk",), {"rank": 8}, "'walk' has rank 4 and scale 16, this run 8 and 16"),
        (("walk",), {"scale": 2.0}, "this run 4 and 2"),
        (("walk",), {"states": 6}, "'walk' is no skill of this policy: input.A is .* it comes from task d4rl"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(tmp_path: Path, names: Any, options: Any, message: str) -> None:
    stored(tmp_path)
    with pytest.raises(UserError, match=message) as told:
        used(tmp_path, names, **options)
    assert "\n" not in str(told.value)


def test_an_empty_library_says_how_to_fill_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none is stored there; method.save=NAME stores one"):
        used(tmp_path, ("walk",))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    stored(tmp_path)
    tensors = tmp_path / "walk.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:-1] + b"x")
    with pytest.raises(UserError, match=r"walk.safetensors is damaged or gone"):
        used(tmp_path, ("walk",))
    tensors.unlink()
    with pytest.raises(UserError, match=r"walk.safetensors is damaged or gone"):
        used(tmp_path, ("walk",))
    tensors.write_bytes(whole)
    (tmp_path / "walk.json").write_text(json.dumps({"rank": 4}))
    with pytest.raises(UserError, match=r"walk.json is damaged"):
        used(tmp_path, ("walk",))


def test_a_run_is_identified_by_the_content_of_its_skills_and_not_by_their_folder(tmp_path: Path) -> None:
    def fingerprint(folder: Path, *more: str) -> str:
        root = [f"paths.root={folder}", "method.skills=[walk]", "method.rank=4"]
        chosen = ["method=psec", "task=d4rl/hopper-medium", "scale=smoke", "model=tiny_diffusion_policy"]
        return config.fingerprint(config.settings_of(config.compose([*chosen, *root, *more])))

    stored(tmp_path / "a" / "skills")
    stored(tmp_path / "b" / "skills")
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    stored(tmp_path / "b" / "skills", states=6)
    assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "b")


def test_a_run_stores_its_skill_and_the_next_one_uses_it(cli: Any, tmp_path: Path) -> None:
    """From command to command, on data of hardly any search."""
    small = [
        *("scale=smoke", "task=d4rl/hopper-random", "model=tiny_diffusion_policy", "logger=none"),
        *("method.rank=4", "method.hidden=16", f"paths.root={tmp_path}"),
    ]
    first = cli("method=psec/skill", *small, "method.save=walk")
    assert first.code == 0, first
    assert skills.names(tmp_path / "skills") == ["walk"]
    known = skills.about("walk", tmp_path / "skills")
    assert (known["task"], known["part"], known["kind"]) == ("d4rl", "hopper-random", "imitation")
    assert known["run"].startswith("d4rl-hopper-psec-")
    before = (tmp_path / "skills" / "walk.safetensors").read_bytes()
    second = cli("method=psec", *small, "method.skills=[walk]", "method.new=[imitation]")
    assert second.code == 0, second
    assert "normalised" in second.out
    assert (tmp_path / "skills" / "walk.safetensors").read_bytes() == before
    wrong = cli("method=psec", *small, "method.skills=[wolk]")
    assert wrong.code == 2
    assert len(wrong.err.strip().splitlines()) == 1
    assert "did you mean 'walk'" in wrong.err
