"""What the tests of all folders need in common: Ctrl-C as a person's shell has it, TensorFlow's
threads.
"""

from __future__ import annotations

import signal

import pytest

NUM_TENSORFLOW_THREADS = 2


def pytest_configure() -> None:
    """A shell starts background commands with Ctrl-C ignored, and their children inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tensorflow_threads() -> int:
    """TensorFlow on two threads of the CPU, with the same kernels each time.

    They can be set only before it computes anything, so every test in whose process it does comes
    here first. More threads than cores make small models slow.
    """
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    tf.config.threading.set_intra_op_parallelism_threads(NUM_TENSORFLOW_THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(NUM_TENSORFLOW_THREADS)
    tf.config.experimental.enable_op_determinism()
    return NUM_TENSORFLOW_THREADS
