"""What tests on a GPU share: why they are skipped where there is none, and torch's choice of algorithms."""

from collections.abc import Iterator

import pytest
import torch


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device here")


@pytest.fixture(autouse=True)
def _algorithms() -> Iterator[None]:
    """Threads and algorithms are as before afterwards."""
    threads, cudnn = torch.get_num_threads(), torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), cudnn.benchmark, cudnn.allow_tf32
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(before[0])
    cudnn.benchmark, cudnn.allow_tf32 = before[1:]
