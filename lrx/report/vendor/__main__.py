"""Fetch the vendored libraries from the npm registry: ``python -m lrx.report.vendor``. Needs npm.

To take a newer version, change it here, run this, look at the report, and bring README.md up to date.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
# npm package and version -> file in the package: file here
PACKAGES = {
    "datatables.net@3.1.5": {"js/dataTables.min.js": "dataTables.min.js", "License.txt": "dataTables.LICENSE.txt"},
    "chart.js@4.6.1": {"dist/chart.umd.min.js": "chart.umd.min.js", "LICENSE.md": "chart.LICENSE.md"},
}


def fetch(package: str, files: dict[str, str], to: Path) -> None:
    """Take ``files`` out of an npm package's archive and put them into ``to``; print their SHA-256."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", package, "--silent"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (archive,) = Path(folder).glob("*.tgz")
        with tarfile.open(archive) as opened:
            for inside, name in files.items():
                stream = opened.extractfile(f"package/{inside}")
                assert stream is not None, f"{package} has no file {inside}"
                content = stream.read()
                (to / name).write_bytes(content)
                print(hashlib.sha256(content).hexdigest(), name)


if __name__ == "__main__":
    for package, files in PACKAGES.items():
        fetch(package, files, Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
