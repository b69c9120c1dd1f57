"""A method, in a package of its own found through an entry point, that does at a chosen step what jobs must survive."""

from __future__ import annotations

from pathlib import Path

SOURCE = '''
"""Head only, and a fault."""
import os
import signal
import sys
import time
from typing import ClassVar, Literal

from lrx.methods.base import Method
from lrx.methods.head import Head


class Faulty(Method):
    name: ClassVar[str] = "faulty"

    def __init__(
        self, *, fault: Literal["none", "raise", "exit", "os_exit", "kill", "segfault", "diverge", "memory",
        "hang", "deaf", "leak", "user", "grandchild", "asked"] = "none", step: int = 2, lr: float = 1e-2,
        weight_decay: float = 0.0, head_lr: float | None = None,
    ) -> None:
        self.fault, self.step, self.head = fault, step, Head(lr=lr)

    def adapt(self, backbone, generator):
        self.head.adapt(backbone, generator)
        if self.fault == "user":
            from lrx.errors import UserError

            raise UserError("method.fault=user: a mistake that only the loaded model shows")

    def optimizer(self, backbone):
        return self.head.optimizer(backbone)

    def after_step(self, backbone, optimizer, step):
        if step != self.step or self.fault == "none":
            return
        if self.fault == "raise":
            raise ZeroDivisionError("the method divides by zero")
        if self.fault == "exit":
            sys.exit(3)
        if self.fault == "os_exit":
            os._exit(7)
        if self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.fault == "diverge":
            for p in backbone.parameters():
                p.data.fill_(float("nan"))
        if self.fault == "memory":
            raise MemoryError("no more")
        if self.fault == "grandchild" and os.fork() == 0:
            time.sleep(300)
            os._exit(0)
        if self.fault == "asked" and os.environ.get("LRX_TEST_FAULT") == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "leak":
            os.environ["LRX_LEAKED"] = "1"
            import torch

            torch.set_default_dtype(torch.float64)
            os.chdir("/")
        if self.fault == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while self.fault in ("hang", "deaf"):
            time.sleep(0.05)
'''


def install(folder: Path) -> str:
    """Write the package below ``folder``; the value for ``PYTHONPATH`` that makes it known."""
    package, info = folder / "lrx_faulty", folder / "lrx_faulty-0.1.dist-info"
    package.mkdir(parents=True)
    info.mkdir()
    (package / "__init__.py").write_text("")
    (package / "method.py").write_text(SOURCE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lrx-faulty\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[lrx.methods]\nfaulty = lrx_faulty.method:Faulty\n")
    return str(folder)
