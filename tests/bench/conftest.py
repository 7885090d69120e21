import pytest
import torch
from tiny_ablation import write_world


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Ten tiny scenes with labels and encoders."""
    torch.set_num_threads(1)
    return write_world(tmp_path_factory.mktemp("world"))
