"""Checkpoints that a kill, a disk or another hand has changed: passed over or refused, never silently used."""

from __future__ import annotations

import io
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lrx.checkpoints import AtomicCheckpoints, compare, newest_readable, read
from lrx.errors import UserError
from tests.faults.forked import fork, leftovers, logged, numbers, run, small, the_record

CHOICE = small("altlora", "callbacks.checkpoint.every_n_steps=3")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole") / "root"
    assert run(CHOICE, root).code == 0
    return root


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run left that was killed behind its second checkpoint, of step 6."""
    root = tmp_path_factory.mktemp("killed") / "root"
    assert run(CHOICE, root, when=logged(root, 7)).code == -signal.SIGKILL
    return root


@pytest.fixture
def broken(killed: Path, tmp_path: Path) -> Path:
    root = tmp_path / "root"
    shutil.copytree(killed, root)
    for path in saved(root)[2:]:  # the signal may come a little late
        path.unlink()
    return root


def saved(root: Path) -> list[Path]:
    return sorted(root.glob("runs/*/sentiment/checkpoints/*.ckpt"), key=lambda path: int(path.stem.split("-")[1]))


def flip(path: Path) -> None:
    """One bit of a weight."""
    data = bytearray(path.read_bytes())
    content = torch.load(path, weights_only=True)
    place = data.find(max(content["state_dict"].values(), key=torch.numel).numpy().tobytes()[:64])
    assert place > 0
    data[place + 5] ^= 1
    path.write_bytes(data)
    torch.load(path, weights_only=True)  # torch does not notice


def pickle_of_code(path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Callable, tuple]:
            return os.system, (f"touch {path.parent / 'owned'}",)

    torch.save({"global_step": 9, "state_dict": Evil()}, path)


DAMAGE = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:1000]),
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(random.Random(0).randbytes(5000)),
    "a bit": flip,
    "pickled code": pickle_of_code,
    "no checkpoint": lambda path: torch.save([1, 2], path),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_broken_checkpoint_is_passed_over(damage: str, broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    earlier, newest = saved(broken)
    identity = torch.load(newest, weights_only=True)["lrx_identity"]
    assert newest_readable(newest.parent, identity) == newest
    assert capsys.readouterr().out == ""
    DAMAGE[damage](newest)
    assert newest_readable(newest.parent, identity) == earlier
    assert f"checkpoint {newest} cannot be read" in capsys.readouterr().out
    assert not list(broken.rglob("owned"))


@pytest.mark.parametrize("damage", ["cut short", "a bit"])
def test_the_run_goes_on_from_the_one_before(damage: str, broken: Path, whole: Path) -> None:
    earlier, newest = saved(broken)
    DAMAGE[damage](newest)
    found = run(CHOICE, broken)
    assert found.code == 0, found
    assert f"checkpoint {newest} cannot be read" in found.out
    assert f"going on from the earlier {earlier.name}" in found.out
    assert numbers(broken) == numbers(whole)


def test_when_none_is_left_training_begins_anew_and_says_so(broken: Path, whole: Path) -> None:
    for path in saved(broken):
        path.write_bytes(path.read_bytes()[:-10])
    found = run(CHOICE, broken)
    assert found.code == 0, found
    assert "going on from the beginning" in found.out
    assert numbers(broken) == numbers(whole)


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (["method=lora"], 'method.name is "lora" there and "altlora" here, versions.method is 1 there and 2 here'),
        (["method.rank=4"], "method.rank is 4 there and 8 here"),
        (["model=tiny_llama"], 'model.name is "tiny_llama" there and "tiny_bert" here'),
        (["seed=3"], "seed is 3 there and 0 here"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(other: list[str], difference: str, broken: Path) -> None:
    """As if copied by hand: the folder of a run is named by its configuration."""
    from lrx.config import compose, identity, settings_of

    there = identity(settings_of(compose([*CHOICE, *other])))
    here = identity(settings_of(compose(CHOICE)))
    target = saved(broken)[-1]
    content = torch.load(target, weights_only=True)
    assert content["lrx_identity"] == here
    torch.save({**content, "lrx_identity": there}, target)
    with pytest.raises(UserError) as caught:
        newest_readable(target.parent, here)
    assert str(caught.value) == (f"{target} is a checkpoint of another run: {difference}; remove it, or give rerun=all")


def test_a_run_with_a_foreign_checkpoint_ends_with_that_line(broken: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    choice = [*CHOICE, "method.rank=4"]
    assert run(choice, foreign, when=logged(foreign, 7)).code == -signal.SIGKILL
    target = saved(broken)[-1]
    shutil.copy(saved(foreign)[-1], target)
    found = run(CHOICE, broken)
    assert found.code == 2, found
    assert "another run: method.rank is 4 there and 8 here" in found.err
    assert len(found.err.strip().splitlines()) == 1
    assert target.exists()


def test_weights_that_do_not_fit_are_named(broken: Path) -> None:
    """The configuration is the same but the method's code names its weights otherwise now."""
    for path in saved(broken):
        content = torch.load(path, weights_only=True)
        content["state_dict"] = {f"old.{key}": value for key, value in content["state_dict"].items()}
        torch.save(content, path)
    found = run(CHOICE, broken)
    assert found.code == 1, found
    assert "the checkpoint does not fit this method" in found.err
    assert "rerun=all" in found.err
    assert the_record(broken).status == "failed"


def test_differences_are_named_by_their_keys() -> None:
    there = {"method": {"rank": 4, "lr": 1e-3}, "seed": 0}
    here = {"method": {"rank": 8, "lr": 1e-3, "alpha": 16}, "seed": 0}
    assert compare(there, here) == ["method.alpha is null there and 16 here", "method.rank is 4 there and 8 here"]
    assert compare(here, here) == []


@pytest.mark.parametrize("name", ["part.json", "best.safetensors"])
def test_other_files_of_a_part_that_are_broken(name: str, broken: Path, whole: Path) -> None:
    (folder,) = broken.glob("runs/*/sentiment")
    (folder / name).write_text('{"part": {"primary"')
    found = run(CHOICE, broken)
    assert found.code == (0 if name == "part.json" else found.code), found
    assert "Traceback" not in found.err
    if name == "part.json":
        assert "part.json cannot be read" in found.out
        assert numbers(broken) == numbers(whole)


def test_killed_twenty_times_while_saving_checkpoints(tmp_path: Path) -> None:
    """There is always a whole one, of the step before at least, and what the dead left is swept by the next run."""
    folder = tmp_path / "checkpoints"
    log = tmp_path / "log"
    rng = random.Random(1)
    torn = 0
    for _ in range(20):
        log.unlink(missing_ok=True)
        first = max((int(p.stem) for p in folder.glob("*.ckpt")), default=0)

        def save(first: int = first) -> None:
            with log.open("w", buffering=1) as stream:
                for step in range(first + 1, first + 10_000):
                    weights = torch.full((50_000,), float(step))
                    AtomicCheckpoints().save_checkpoint({"global_step": step, "w": weights}, folder / f"{step}.ckpt")
                    (folder / f"{step - 2}.ckpt").unlink(missing_ok=True)
                    stream.write(f"{step}\n")

        moment = time.monotonic() + rng.uniform(0.05, 0.25)
        assert fork(save, tmp_path / "p", when=lambda m=moment: time.monotonic() > m).code == -signal.SIGKILL
        done = [int(line) for line in log.read_text().split()] if log.exists() else []
        newest = newest_readable(folder, {})
        if done:
            assert newest is not None
            assert int(newest.stem) >= done[-1]
            assert (read(newest)["w"] == float(newest.stem)).all()
            torn += bool(leftovers(folder))
    assert torn >= 3  # some did die in the middle
    from lrx.files import sweep_temporary

    sweep_temporary(folder)
    assert leftovers(folder) == []


def test_a_run_sweeps_what_a_killed_one_was_writing(broken: Path) -> None:
    from lrx.files import _host

    (folder,) = broken.glob("runs/*/sentiment")
    dead = f"{_host()}@999999.00000000.tmp"
    (broken / "records").mkdir()
    for place in (folder, folder / "checkpoints", folder.parent, broken / "records"):
        (place / f".x.{dead}").write_text("half")
    assert run(CHOICE, broken).code == 0
    assert leftovers(broken) == []


def test_a_checkpoint_is_read_only_whole(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"global_step": 1}, buffer)
    path = tmp_path / "x.ckpt"
    path.write_bytes(buffer.getvalue())
    assert read(path) == {"global_step": 1}
    torch.save({"global_step": 1, "lrx_identity": {"seed": 1}}, path)
    with pytest.raises(UserError, match="another run: seed is 1 there and 2 here"):
        newest_readable(tmp_path, {"seed": 2})
