"""PyTorch's share of the harness, with faked GPUs and faked processes."""

import random

import numpy
import pytest
import torch

from harness import torch_support
from harness.errors import UsageError
from harness.options import RunOptions


@pytest.fixture
def gpu(monkeypatch):
    """Pretend that there is a GPU; call with its compute capability."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch_support, "require_compiler", lambda: None)

    def of(major, minor):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, minor))

    return of


def test_a_p100_refuses_compile_and_bf16(gpu):
    gpu(6, 0)
    assert torch_support.choose_device(RunOptions()).type == "cuda"
    assert torch_support.choose_device(RunOptions(precision="fp16")).type == "cuda"
    with pytest.raises(UsageError, match=r"compile needs compute capability 7\.0, this GPU has 6"):
        torch_support.choose_device(RunOptions(compile=True))
    with pytest.raises(UsageError, match=r"bf16 needs compute capability 8\.0"):
        torch_support.choose_device(RunOptions(precision="bf16"))


def test_a_v100_compiles_without_bf16(gpu):
    gpu(7, 0)
    assert torch_support.choose_device(RunOptions(compile=True)).type == "cuda"
    with pytest.raises(UsageError, match="bf16"):
        torch_support.choose_device(RunOptions(precision="bf16"))


def test_an_a100_does_all(gpu):
    gpu(8, 0)
    options = RunOptions(compile=True, precision="bf16")
    assert torch_support.choose_device(options) == torch.device("cuda", 0)


def test_compile_without_a_compiler_is_one_line(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match=r"g\+\+ and Python's headers"):
        torch_support.choose_device(RunOptions(compile=True, device="cpu"))


def test_each_process_takes_its_own_gpu(gpu, monkeypatch):
    gpu(8, 0)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert torch_support.choose_device(RunOptions()) == torch.device("cuda", 3)


def test_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert torch_support.choose_device(RunOptions()) == torch.device("cpu")
    with pytest.raises(UsageError, match="no GPU"):
        torch_support.choose_device(RunOptions(device="cuda"))


@pytest.mark.parametrize(
    ("cores", "processes", "workers", "threads"),
    [(16, 1, 0, 16), (16, 1, 4, 12), (16, 4, 2, 2), (2, 4, 0, 1), (2, 1, 5, 1)],
)
def test_threads_and_workers_fit_the_cores(monkeypatch, cores, processes, workers, threads):
    monkeypatch.setattr(torch_support, "num_cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    before = torch.get_num_threads()
    try:
        torch_support.set_up(torch.device("cpu"), 1, workers)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def draws():
    """One number of each generator."""
    return random.random(), float(numpy.random.rand()), float(torch.rand(()))  # noqa: NPY002


def test_one_seed_decides_every_generator():
    torch_support.set_up(torch.device("cpu"), 1)
    first = draws()
    torch_support.set_up(torch.device("cpu"), 1)
    assert draws() == first
    torch_support.set_up(torch.device("cpu"), 2)
    assert all(a != b for a, b in zip(draws(), first, strict=True))
    assert len(set(first)) == 3


def test_a_checkpoint_brings_the_generators_back(tmp_path):
    torch_support.set_up(torch.device("cpu"), 3)
    draws()
    path = tmp_path / "state.pt"
    with path.open("wb") as file:
        torch_support.save({"weights": torch.ones(2)}, file)
    expected = draws()
    torch_support.set_up(torch.device("cpu"), 4)
    state = torch_support.load(path)
    assert draws() == expected
    assert list(state) == ["weights"]


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path):
    path = tmp_path / "state.pt"
    torch.save({"rng_states": print}, path)
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        torch_support.load(path)


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
@pytest.mark.parametrize("size", [0, 1, 5, 2048])
def test_shares_cover_a_batch_once(monkeypatch, processes, size):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    covered = []
    for rank in range(processes):
        monkeypatch.setenv("RANK", str(rank))
        covered += range(*torch_support.share(100, size))
    assert covered == list(range(100, 100 + size))


def test_losses_come_back_as_they_are():
    losses = [torch.tensor(0.1), torch.tensor(float("nan")), torch.tensor(3e-8)]
    values, stop = torch_support.mean_losses(losses, stop=False)
    assert not stop
    assert values[0] == losses[0].item()
    assert values[1] != values[1]
    assert values[2] == losses[2].item()
    assert torch_support.mean_losses(losses, stop=True)[1]


def test_float32_is_float32():
    """PyTorch lets cuDNN round the inputs of float32 convolutions to ten bits by itself."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    torch_support.set_up(torch.device("cpu"), 1)
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
