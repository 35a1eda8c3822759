"""A benchmark's download_dataset.sh and verify_dataset.sh, run as a person would run them."""

from __future__ import annotations

import contextlib
import functools
import http.server
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPTS = ("download_dataset.sh", "verify_dataset.sh")


@dataclass(frozen=True)
class DatasetScripts:
    """The two scripts of one benchmark."""

    benchmark: str

    def run(
        self,
        script: str,
        *arguments: str,
        data: Path | str,
        root: Path = REPOSITORY,
        **environment: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run a script of the checkout at `root`, from another folder ($PWD names one)."""
        # An environment made without pip is no reason to fail: the system's own may have it.
        python = sys.executable if importlib.util.find_spec("pip") else "python3"
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("DATASET_", "PRESET", "PYTHON"))
        }
        own = {"PYTHON": python, "DATA_DIR": str(data), "DATASET_RETRY_S": "0"}
        return subprocess.run(
            [root / self.benchmark / script, *arguments],
            env=inherited | own | environment,
            cwd=environment.get("PWD", "/"),
            capture_output=True,
            text=True,
            check=False,
        )

    def pinned(self, preset: str, kind: str = "sha256") -> dict[str, str]:
        """File name to digest, as checksums/ has them."""
        file = REPOSITORY / self.benchmark / "checksums" / f"{preset}.{kind}"
        lines = (line.split("  ") for line in file.read_text().splitlines())
        return {name: digest for digest, name in lines}

    def copy_of_checkout(self, root: Path, replacements: Mapping[str, str] | None = None) -> Path:
        """Only what the two scripts need, at another place; some words in them are others."""
        (root / "harness").mkdir(parents=True)
        shutil.copy(REPOSITORY / "harness" / "dataset.sh", root / "harness")
        ignore = shutil.ignore_patterns("tests", "__pycache__")
        folder = root / self.benchmark
        shutil.copytree(REPOSITORY / self.benchmark, folder, ignore=ignore)
        files = [folder / script for script in SCRIPTS]
        for before, after in (replacements or {}).items():
            assert any(before in path.read_text() for path in files), before
            for path in files:
                path.write_text(path.read_text().replace(before, after))
        return root


def error_line(result: subprocess.CompletedProcess[str], status: int) -> str:
    """The last line of stderr, and the only error there, of a script that ended with `status`."""
    assert result.returncode == status, result.stdout + result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert lines == result.stderr.splitlines()[-1:], result.stderr
    return lines[0]


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files; requests are not what the tests are about."""

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[str]:
    """The address of a server for the files in a folder, which is made."""
    folder.mkdir()
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
