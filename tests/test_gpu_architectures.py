"""PyTorch 2.7.1 and TensorFlow carry machine code for the P100, the reference machine's GPU, and up
to sm_90.

Read out of the installed libraries, so it needs no GPU: CUDA code lies in the ELF section
`.nv_fatbin` as a row of containers, each a header and one entry for each architecture.
"""

import importlib.metadata
import mmap
import re
import struct
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PTX, MACHINE_CODE = 1, 2  # the kind of an entry; only GPUs at least as new can use PTX
CONTAINER = struct.Struct("<IHHQ")  # magic number, version, header's bytes, bytes that follow it
CONTAINER_MAGIC = 0xBA55ED50
ENTRY = struct.Struct("<HHIQ12xI")  # kind, version, header's bytes, bytes after it, architecture


def fatbin_section(library: mmap.mmap) -> tuple[int, int]:
    """Begin and end of `.nv_fatbin` in a 64-bit little-endian ELF file."""
    assert library[:6] == b"\x7fELF\x02\x01"
    (table,) = struct.unpack_from("<Q", library, 0x28)
    entry_bytes, num_sections, names_index = struct.unpack_from("<HHH", library, 0x3A)
    sections = [
        struct.unpack_from("<IIQQQQ", library, table + index * entry_bytes)
        for index in range(num_sections)
    ]
    names_offset = sections[names_index][4]
    for name_offset, _, _, _, offset, size_bytes in sections:
        begin = names_offset + name_offset
        if library[begin : library.find(b"\0", begin)] == b".nv_fatbin":
            return offset, offset + size_bytes
    raise AssertionError("no CUDA code in this library")


def architectures(path: Path, wanted_kind: int = MACHINE_CODE) -> Counter[int]:
    """Architecture (60 for sm_60) to the number of pieces of machine code, or PTX, for it."""
    counts: Counter[int] = Counter()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as library:
        position, end = fatbin_section(library)
        while position < end:
            magic, _, header_bytes, content_bytes = CONTAINER.unpack_from(library, position)
            if magic != CONTAINER_MAGIC:
                position += 8  # padding: containers are aligned to 8 bytes
                continue
            entry = position + header_bytes
            position = entry + content_bytes
            while entry < position:
                kind, _, entry_header_bytes, code_bytes, architecture = ENTRY.unpack_from(
                    library, entry
                )
                counts[architecture] += kind == wanted_kind
                entry += entry_header_bytes + code_bytes
    return counts


@pytest.mark.parametrize(
    ("package", "library"),
    [
        ("torch", "torch/lib/libtorch_cuda.so"),
        ("nvidia-cublas-cu12", "nvidia/cublas/lib/libcublas.so.12"),
        ("nvidia-cublas-cu12", "nvidia/cublas/lib/libcublasLt.so.12"),
        ("nvidia-cudnn-cu12", "nvidia/cudnn/lib/libcudnn_ops.so.9"),
        ("nvidia-cudnn-cu12", "nvidia/cudnn/lib/libcudnn_cnn.so.9"),
    ],
)
def test_pytorch_runs_on_a_p100_and_up_to_sm_90(package: str, library: str) -> None:
    version = importlib.metadata.version("torch")
    if version != "2.7.1":
        pytest.skip(f"torch {version} is for newer GPUs; the P100 is promised for 2.7.1")
    path = Path(str(importlib.metadata.distribution(package).locate_file(library)))
    counts = architectures(path)
    assert counts[60] > 0
    assert counts[90] > 0
    assert counts[100] == 0  # so that quickstart.sh rightly takes the newest PyTorch above 9.0
    if package == "torch":
        # Every kernel, not just some: each piece that there is for the V100 is there for the P100.
        assert counts[60] == counts[70]


@pytest.mark.parametrize("library", ["libtensorflow_cc.so.2", "libtensorflow_framework.so.2"])
def test_tensorflow_runs_on_a_p100_up_to_sm_90_and_beyond(library: str) -> None:
    """Every kernel for each of them, and its PTX, which newer GPUs translate when they start."""
    path = importlib.metadata.distribution("tensorflow").locate_file(f"tensorflow/{library}")
    counts = architectures(Path(str(path)))
    assert counts[60] == counts[70] == counts[80] == counts[90] > 0
    assert +architectures(Path(str(path)), PTX) == {90: counts[90]}


def test_the_tensorflow_images_take_a_cudnn_that_knows_the_p100() -> None:
    """9.11 is the first without Pascal."""
    lock = (ROOT / "harness" / "requirements-tensorflow.txt").read_text()
    ((major, minor),) = re.findall(r"^nvidia-cudnn-cu12==(\d+)\.(\d+)\.", lock, re.MULTILINE)
    assert (9, 0) <= (int(major), int(minor)) < (9, 11)
