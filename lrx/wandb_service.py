"""wandb without its costs: one background service for many jobs, bounded waits, nothing sent that was not asked for.

wandb does its work in a separate process, ``wandb-core``. Started once and named in ``WANDB_SERVICE``, it serves every
process that inherits the variable; a job then opens a run in a tenth of a second instead of one. Free of torch.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from lrx.errors import UserError

os.environ.setdefault("WANDB_SILENT", "true")  # this and the next are read when wandb is first imported
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # wandb would report its errors to its makers, and take 0.1 s

INIT_SECONDS = 30.0  # how long a service or server may take to open a run, in the background
WRITE_SECONDS = 2.0  # to write the rest of an offline run's file
_TOKEN = "WANDB_SERVICE"
_started: dict[int, subprocess.Popen[bytes]] = {}  # this process's id -> the service it started


def share_service() -> None:
    """Start one service for this process and those it forks. Call it before the first fork; it never raises.

    It leaves no thread behind, and imports what ``wandb.init`` otherwise imports in each job. The service ends with
    this process. Without one, or when it dies, each job starts its own.
    """
    try:
        import wandb.sdk.launch  # noqa: F401 - imported by wandb.init itself, which takes half a second

        ensure_service()
    except Exception as error:
        print(f"warning: wandb's service did not start ({one_line(error)}); jobs start their own", file=sys.stderr)


def ensure_service() -> None:
    """Let ``WANDB_SERVICE`` name a service that answers: the inherited one, or a new one of this process."""
    token = os.environ.get(_TOKEN)
    if token and not _answers(token):
        forget_service()
    if os.environ.get(_TOKEN):
        return
    import wandb
    from wandb.sdk.lib.service import service_process

    # wandb.setup() would do the same, but leave a thread in a process that is about to fork, and an exit hook that
    # waits for the service without a limit.
    service = service_process.start(wandb.Settings(silent=True, x_service_wait=INIT_SECONDS))
    service.token.save_to_env()
    if not _started:
        atexit.register(_stop_service)
    _started[os.getpid()] = service._process


def forget_service() -> None:
    """Drop a service that does not answer, so that the next run of this process gets a new one. Never raises."""
    os.environ.pop(_TOKEN, None)
    _stop_service()
    with contextlib.suppress(Exception):
        from wandb.sdk import wandb_setup

        wandb_setup._singleton = None  # wandb.teardown() would wait for the dead service


def _stop_service() -> None:
    """End the service that this very process started; a forked job leaves its parent's alone."""
    service = _started.pop(os.getpid(), None)
    if service is not None:
        service.kill()  # every run is written (finish_run) or given up
        with contextlib.suppress(subprocess.TimeoutExpired):
            service.wait(timeout=2)


def _answers(token: str) -> bool:
    """Whether something accepts connections where ``token`` points."""
    if match := re.fullmatch(r"\d+-\d+-unix-(.+)", token):
        family, address = socket.AF_UNIX, match[1]
    elif match := re.fullmatch(r"\d+-\d+-tcp-localhost-(\d+)", token):
        family, address = socket.AF_INET, ("localhost", int(match[1]))  # type: ignore[assignment]
    else:
        return False
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(address)
        except OSError:
            return False
    return True


def start_run(*, online: bool, finish_seconds: float = INIT_SECONDS, **options: Any) -> Any:
    """``wandb.init`` with ``options``, without prompts, system statistics and copies of the terminal.

    Its ``finish`` raises ``TimeoutError`` when what was logged is not through after ``finish_seconds``.

    Raises ``UserError`` without an API key in online mode, where wandb would ask on the terminal and wait, and wandb's
    errors for the rest.
    """
    import wandb

    if online:
        server()
    ensure_service()
    run = wandb.init(
        mode="online" if online else "offline",
        settings=wandb.Settings(
            silent=True,
            console="off",
            init_timeout=INIT_SECONDS,
            finish_timeout=finish_seconds,
            finish_timeout_raises=True,
            disable_git=True,
            disable_code=True,
            x_disable_stats=True,
            x_save_requirements=False,  # the record names the versions; listing all packages takes a quarter second
        ),
        reinit="create_new",
        **options,
    )
    # wandb hooks into later imports to count them; with its service gone, such an import would raise in the run.
    from wandb.sdk.lib.import_hooks import unregister_all_post_import_hooks

    unregister_all_post_import_hooks()
    return run


def finish_run(run: Any, exit_code: int) -> None:
    """End a run. An offline one is only then in its file: wandb's own ``finish`` returns before it is written.

    Raises wandb's errors, and ``OSError`` when the file does not get its end, for instance on a full disk.
    """
    run.finish(exit_code=exit_code)
    if not run.settings._offline:
        return
    from lrx.results.wandb_files import has_end

    path = Path(run.settings.sync_file)
    deadline = time.monotonic() + WRITE_SECONDS
    while not has_end(path):
        if time.monotonic() > deadline:
            raise OSError(f"{path} was not written to its end; is the disk full?")
        time.sleep(0.005)


def server() -> str:
    """The address of wandb's server. Raises ``UserError`` when this process may not or cannot log in there."""
    mode = os.environ.get("WANDB_MODE", "online")
    if mode != "online":
        raise UserError(f"WANDB_MODE={mode} is set, which forbids it; unset it")
    import wandb
    from wandb.sdk import wandb_setup

    address = str(wandb_setup.singleton().settings.base_url)
    if not wandb.login(prompt=False, verify=False):
        raise UserError(f"no API key for {address}: run `wandb login` or set WANDB_API_KEY")
    return address


def one_line(error: BaseException) -> str:
    """An error's message in one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__
