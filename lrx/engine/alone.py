"""One job in a fresh process: ``python -m lrx.engine.alone job.json [FD]``; FD: a pipe to say how it ended.

Lightning's distributed strategies start this very command again for each further rank, which has no such pipe.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

from lrx.engine.work import do


def main() -> int:
    job = json.loads(Path(sys.argv[1]).read_text())
    ended = do(job["settings"], job["run_id"])
    if len(sys.argv) > 2 and os.environ.get("LOCAL_RANK", "0") == "0":
        with contextlib.suppress(OSError):
            os.write(int(sys.argv[2]), json.dumps({**ended.as_dict(), "message": ended.message[:4000]}).encode())
    return ended.code


if __name__ == "__main__":
    sys.exit(main())
