"""What must hold for every folder: rooms, locks, imports, line budgets, names that lead somewhere.

Folders of benchmarks that are not there yet are not asked for.
"""

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from harness.options import default_options

ROOT = Path(__file__).parent.parent
ALL_BENCHMARKS = (
    "image_classification",
    "object_detection",
    "single_stage_detector",
    "speech_recognition",
    "translation",
    "recommendation",
    "sentiment_analysis",
    "reinforcement",
)
BENCHMARKS = [name for name in ALL_BENCHMARKS if (ROOT / name).exists()]
ROOMS = """
    README.md Dockerfile requirements.in requirements.txt
    download_dataset.sh verify_dataset.sh run_and_time.sh
    config.py data.py model.py train.py evaluate.py predict.py
"""
ROOT_FILES = """
    README.md LICENSE CONTRIBUTING.md RULES.md CHANGELOG.md pyproject.toml requirements-dev.in
    requirements-dev.txt quickstart.sh test.sh .ci/run .gitignore .dockerignore
"""
OTHER_FOLDERS = {"harness", "comparisons", "tests", "tools"}
NOT_OURS = {"data", "results"}  # what runs leave behind; names with a dot are caches, except .ci

FRAMEWORKS = {"torch", "torchvision", "torchaudio", "tensorflow", "keras", "jax"}
FRAMEWORK_FILES = {"torch_support.py", "tensorflow_support.py"}


def uses(framework: str, benchmark: str) -> bool:
    return framework in (ROOT / benchmark / "requirements.in").read_text().split()


def project_files(*suffixes: str) -> list[Path]:
    """All files of the project with one of these endings, without what runs leave behind."""
    folders = [path for path in ROOT.iterdir() if path.is_dir()]
    kept = [path for path in folders if path.name[0] != "." and path.name not in NOT_OURS]
    kept.append(ROOT / ".ci")
    files = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in kept:
        files += [path for path in folder.rglob("*") if "__pycache__" not in path.parts]
    return sorted(path for path in files if path.is_file() and path.name.endswith(suffixes))


def python_files() -> list[Path]:
    return project_files(".py")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


# --- rooms ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_every_benchmark_has_all_rooms(benchmark: str) -> None:
    rooms = ROOMS.split()
    if uses("torch", benchmark):
        rooms.append("requirements-newest.txt")
    folder = ROOT / benchmark
    assert [room for room in rooms if not (folder / room).is_file()] == []
    assert list((folder / "checksums").iterdir())
    assert list((folder / "tests").glob("test_*.py"))


def test_the_root_has_its_files_and_no_other_folder() -> None:
    assert [name for name in ROOT_FILES.split() if not (ROOT / name).is_file()] == []
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "."}
    assert folders - OTHER_FOLDERS - NOT_OURS - set(BENCHMARKS) == set()


def test_no_folder_is_an_empty_stub() -> None:
    assert BENCHMARKS
    for benchmark in BENCHMARKS:
        assert (ROOT / benchmark / "run_and_time.sh").is_file(), benchmark


# --- requirements ---------------------------------------------------------------------------------

LOCKS = [path for path in project_files(".txt") if path.name.startswith("requirements")]
NEWEST_LOCKS = [path for path in LOCKS if path.stem.endswith("-newest")]
TENSORFLOW_LOCKS = [
    ROOT / "harness/requirements-tensorflow.txt",
    *(ROOT / name / "requirements.txt" for name in BENCHMARKS if uses("tensorflow", name)),
]
DEFAULT_LOCKS = [path for path in LOCKS if path not in NEWEST_LOCKS + TENSORFLOW_LOCKS]
PIN = re.compile(r"([a-z0-9][a-z0-9-]*)==([^ ]+)(?: ; [^\\]*)?(?: \\)?")
HASH = re.compile(r"    --hash=sha256:[0-9a-f]{64}(?: \\)?")
TORCH_OWN = re.compile(r"torch|torchvision|triton|cuda-.*|nvidia-.*")


@cache
def pins(lock: Path) -> dict[str, str]:
    """Package name to version; fails on a line that is neither a pin, a digest nor a comment."""
    versions: dict[str, str] = {}
    num_digests: dict[str, int] = {}
    name = ""
    for number, line in enumerate(lock.read_text().splitlines(), 1):
        if line.lstrip().startswith("#"):
            continue
        where = f"{name_of(lock)}:{number}: {line}"
        if match := PIN.fullmatch(line):
            name = match[1]
            assert name not in versions, f"{where}: the second version of {name}"
            versions[name] = match[2]
            num_digests[name] = 0
        else:
            assert HASH.fullmatch(line), where
            num_digests[name] += 1
    assert all(num_digests.values()), num_digests
    return versions


def direct_needs(path: Path) -> set[str]:
    """Names that a requirements.in asks for, those of the files that it takes in included."""
    names = set()
    for line in path.read_text().splitlines():
        if line.startswith("-r "):
            names |= direct_needs(path.parent / line.removeprefix("-r "))
        elif line and line[0] != "#":
            names.add(re.split("[=<>~!; ]", line)[0])
    return names


@pytest.mark.parametrize("lock", LOCKS, ids=name_of)
def test_every_requirement_is_pinned_with_digests(lock: Path) -> None:
    assert len(pins(lock)) > 10
    text = lock.read_text()
    assert text.splitlines()[1] == "#    tools/lock.sh"
    assert "://" not in text
    assert "/tmp" not in text
    assert "win32" not in text or "colorama" in text


@pytest.mark.parametrize(
    "locks",
    [DEFAULT_LOCKS, NEWEST_LOCKS, TENSORFLOW_LOCKS],
    ids=["default", "newest", "tensorflow"],
)
def test_locks_agree(locks: list[Path]) -> None:
    agreed: dict[str, str] = {}
    for lock in locks:
        for name, version in pins(lock).items():
            assert agreed.setdefault(name, version) == version, f"{name} in {name_of(lock)}"


def test_only_pytorch_differs_in_the_locks_for_the_newest() -> None:
    default = pins(ROOT / "requirements-dev.txt")
    for lock in NEWEST_LOCKS:
        for name, version in pins(lock).items():
            if not TORCH_OWN.fullmatch(name):
                assert default.get(name) == version, f"{name} in {name_of(lock)}"


def test_only_nvidias_libraries_differ_in_the_locks_for_tensorflow() -> None:
    """The two frameworks ask for other versions of them; the common environment has PyTorch's."""
    default = pins(ROOT / "requirements-dev.txt")
    for lock in TENSORFLOW_LOCKS:
        for name, version in pins(lock).items():
            if not name.startswith("nvidia-"):
                assert default.get(name) == version, f"{name} in {name_of(lock)}"


def test_the_development_lock_holds_every_default_lock() -> None:
    everything = pins(ROOT / "requirements-dev.txt")
    for lock in DEFAULT_LOCKS:
        assert pins(lock).items() <= everything.items(), name_of(lock)
    assert direct_needs(ROOT / "requirements-dev.in") <= everything.keys()


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_a_benchmarks_locks_hold_its_needs_and_the_shared_layer(benchmark: str) -> None:
    folder = ROOT / benchmark
    needs = direct_needs(folder / "requirements.in")
    assert direct_needs(ROOT / "harness/requirements.in") <= needs
    versions = {
        "torch": {"": "2.7.1", "-newest": "2.14.1"},
        "tensorflow": {"": "2.21.0"},
    }
    (framework,) = (name for name in versions if uses(name, benchmark))
    for ending, version in versions[framework].items():
        lock = pins(folder / f"requirements{ending}.txt")
        layer = pins(ROOT / f"harness/requirements-{framework}{ending}.txt")
        assert needs <= lock.keys()
        assert layer.items() <= lock.items()
        assert lock[framework] == version


# --- python ---------------------------------------------------------------------------------------


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_a_benchmark_imports_the_harness_and_no_other_benchmark(benchmark: str) -> None:
    others = set(ALL_BENCHMARKS) - {benchmark} | {"comparisons"}
    for path in (ROOT / benchmark).rglob("*.py"):
        tops = {module.split(".")[0] for module in imported_modules(path)}
        assert not tops & others, name_of(path)


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_the_model_knows_nothing_of_its_training(benchmark: str) -> None:
    modules = set(imported_modules(ROOT / benchmark / "model.py"))
    training = tuple(f"{benchmark}.{room}" for room in ("train", "evaluate", "data", "prepare"))
    assert not [module for module in modules if module.startswith((*training, "harness"))]


def test_the_harness_imports_no_benchmark_and_no_framework() -> None:
    for path in (ROOT / "harness").rglob("*.py"):
        tops = {module.split(".")[0] for module in imported_modules(path)}
        assert not tops & set(ALL_BENCHMARKS), name_of(path)
        assert path.name in FRAMEWORK_FILES or not tops & FRAMEWORKS, name_of(path)


def num_lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_line_budgets() -> None:
    harness = ROOT / "harness"
    core = ("clock.py", "run_log.py", "stop_rule.py", "seeds.py", "checkpoint.py")
    assert sum(num_lines(harness / name) for name in core) <= 700
    for name in FRAMEWORK_FILES:
        if (harness / name).exists():
            assert num_lines(harness / name) <= 150, name
    for benchmark in BENCHMARKS:
        assert num_lines(ROOT / benchmark / "train.py") <= 450, benchmark


def test_functions_fit_on_a_screen() -> None:
    """But for one in each train.py: the loop."""
    too_long = []
    for path in python_files():
        long = [
            f"{name_of(path)}:{node.lineno} {node.name}"
            for node in ast.walk(parse(path))
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 80
        ]
        too_long += long[1:] if path.name == "train.py" else long
    assert too_long == []


def forbidden(node: ast.AST) -> str | None:
    """What is wrong with this piece of code, if anything: it runs or unpickles what it is given."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
        unsafe = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal"}
        return "unpickling" if unsafe & {name.split(".")[0] for name in names} else None
    if not isinstance(node, ast.Call):
        return None
    called = ast.unparse(node.func)
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    if called in {"eval", "exec", "os.system", "os.popen"}:
        return called
    if keywords.get("shell", "False") != "False":
        return "shell=True"
    if keywords.get("allow_pickle", "False") != "False":
        return "allow_pickle"
    if called == "torch.load" and keywords.get("weights_only") != "True":
        return "torch.load without weights_only=True"
    return None


@pytest.mark.parametrize(
    "code",
    [
        "eval('1')",
        "exec(text)",
        "import pickle",
        "from pickle import loads",
        "subprocess.run(command, shell=True)",
        "os.system(command)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "numpy.load(path, allow_pickle=True)",
    ],
)
def test_unsafe_code_is_recognised(code: str) -> None:
    assert any(forbidden(node) for node in ast.walk(ast.parse(code)))


@pytest.mark.parametrize("code", ["model.eval()", "torch.load(path, weights_only=True)"])
def test_safe_code_is_let_through(code: str) -> None:
    assert not any(forbidden(node) for node in ast.walk(ast.parse(code)))


RESTRICTED_UNPICKLING = {
    f"object_detection/{name}backbone_weights.py: unpickling" for name in ("", "tests/test_")
}
"""The authors' weights are a pickle: read by an unpickler that knows arrays and nothing else."""


def test_no_code_runs_or_unpickles_what_it_is_given() -> None:
    found = {
        f"{name_of(path)}: {reason}"
        for path in python_files()
        for node in ast.walk(parse(path))
        if (reason := forbidden(node))
    }
    assert found <= RESTRICTED_UNPICKLING


# --- scripts, images and documents ----------------------------------------------------------------

LIBRARIES = {"tools/environment.sh", "harness/dataset.sh"}  # only ever sourced
SCRIPTS = [path for path in [*project_files(".sh"), ROOT / ".ci/run"] if path.is_file()]


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_scripts_can_be_run_and_stop_at_errors(script: Path) -> None:
    text = script.read_text()
    assert not re.search(r"^\s*eval\b", text, re.MULTILINE)
    executable = bool(script.stat().st_mode & 0o111)
    assert executable == (name_of(script) not in LIBRARIES)
    if text.startswith("# shellcheck shell=bash\n"):
        assert not executable
        return
    assert text.startswith("#!/usr/bin/env bash\n# ")
    assert "\nset -euo pipefail\n" in text


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_the_download_script_says_what_mini_takes(benchmark: str) -> None:
    """quickstart.sh reads this line out of the help."""
    script = ROOT / benchmark / "download_dataset.sh"
    output = subprocess.run([script, "--help"], capture_output=True, text=True, check=True).stdout
    (line,) = re.findall(r"^ *mini  +(.+)$", output, re.MULTILINE)
    assert re.search(r"\d [kMG]B|nothing to fetch|made here", line)


DATASET_SCRIPTS = [
    ROOT / benchmark / script
    for benchmark in BENCHMARKS
    for script in ("download_dataset.sh", "verify_dataset.sh")
]


@pytest.mark.parametrize("script", DATASET_SCRIPTS, ids=name_of)
def test_scripts_and_training_look_for_the_data_in_one_place(
    script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both detectors share theirs: harness/options.py and the scripts each have its name."""
    monkeypatch.delenv("DATA_DIR", raising=False)
    folder = default_options(script.parent.name, "<preset>").data_dir.relative_to(ROOT)
    output = subprocess.run([script, "--help"], capture_output=True, text=True, check=True).stdout
    assert f" (default <repository>/{folder})\n" in output


@pytest.mark.parametrize("script", DATASET_SCRIPTS, ids=name_of)
def test_digests_stand_in_checksums_alone(script: Path) -> None:
    assert not re.search(r"[0-9a-f]{32}", script.read_text())


def instructions(benchmark: str) -> list[str]:
    """A Dockerfile's instructions, continuation lines joined and comments left out."""
    text = re.sub(r"(?m)^#.*\n", "", (ROOT / benchmark / "Dockerfile").read_text())
    return [line for line in re.sub(r"\\\n\s*", "", text).splitlines() if line]


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_the_image_is_what_the_contract_says(benchmark: str) -> None:
    lines = instructions(benchmark)
    assert lines[0] == "FROM python:3.11-slim-bookworm"
    assert f'ENTRYPOINT ["/mlperf/{benchmark}/run_and_time.sh"]' in lines
    (user,) = (line.split()[1] for line in lines if line.startswith("USER "))
    assert user.split(":")[0] not in {"root", "0"}
    (environment,) = (line for line in lines if line.startswith("ENV DATA_DIR"))
    for setting in ("DATA_DIR=/data", "RESULTS_DIR=/results", "HOME=/tmp"):
        assert setting in environment.split()
    # The legacy builder knows no mounts, and a commit that changes must not cost a layer.
    assert not any("--mount" in line for line in lines)
    assert lines.index("ARG GIT_COMMIT=unknown") > lines.index(
        f"COPY {benchmark} /mlperf/{benchmark}"
    )
    for line in lines:
        if line.startswith("COPY "):
            for source in line.split()[1:-1]:
                assert (ROOT / source.replace("${REQUIREMENTS}", "requirements.txt")).exists(), line
        if "pip install" in line:
            assert "--require-hashes" in line
            assert "--no-cache-dir" in line


@pytest.mark.parametrize(
    ("framework", "name"), [("torch", "PyTorch"), ("tensorflow", "TensorFlow")]
)
def test_all_images_of_a_framework_share_its_layer(framework: str, name: str) -> None:
    end = f"# --- Down to here all {name} images have the same bytes"
    beginnings = set()
    users = [benchmark for benchmark in BENCHMARKS if uses(framework, benchmark)]
    for benchmark in users:
        beginning, marker, _ = (ROOT / benchmark / "Dockerfile").read_text().partition(end)
        assert marker, benchmark
        for step in ("COPY harness/", "/opt/locks/"):
            assert f"{step}requirements-{framework}" in beginning
        assert benchmark not in beginning
        beginnings.add(beginning)
    assert len(beginnings) == min(1, len(users))


NAMED_FILE = re.compile(
    r"(?<![\w/.$}<>*-])(?:\./)?"
    r"((?:[\w.-]+/)*[\w.-]+\.(?:sh|py|md|toml|in|sha256|md5)|(?:[\w.-]+/)*Dockerfile)\b"
)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
NAMED_MODULE = re.compile(r"python3? -m ([a-z_]+(?:\.[a-z_]+)*)")
MADE_BY_RUNS = re.compile(r"(?:\.venv|data|results)/.*|(?:.*/)?MANIFEST\.sha256")
NAMING_FILES = [*SCRIPTS, *project_files(".md", "Dockerfile", ".toml", ".in")]
BASE_NAMES = {path.name for path in project_files("")}


def leads_somewhere(path: Path, name: str) -> bool:
    """Whether `name`, as `path` says it, is a file beside it, below the root, or in some folder."""
    return (
        (path.parent / name).exists()
        or (ROOT / name).exists()
        or name in BASE_NAMES
        or name in FRAMEWORK_FILES  # the second comes with its first benchmark
        or bool(MADE_BY_RUNS.fullmatch(name))
    )


def module_file(module: str) -> Path:
    file = ROOT / module.replace(".", "/")
    return file / "__main__.py" if file.is_dir() else file.with_suffix(".py")


@pytest.mark.parametrize("path", NAMING_FILES, ids=name_of)
def test_every_file_that_is_named_is_there(path: Path) -> None:
    text = re.sub(r"https?://\S+", "", path.read_text())
    names = {match[1] for match in NAMED_FILE.finditer(text)} | set(LINK.findall(text))
    missing = [name for name in sorted(names) if not leads_somewhere(path, name)]
    missing += [
        module
        for module in NAMED_MODULE.findall(text)
        if module.split(".")[0] in {"harness", *ALL_BENCHMARKS}
        and not module_file(module).is_file()
    ]
    assert missing == []
