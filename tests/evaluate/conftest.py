import pytest
from tiny_worlds import write_tiny_store

from stillroom.scenes.store import SceneStore


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> SceneStore:
    """42 tiny scenes: 18 train, 12 test, 6 val, 6 shifted."""
    return write_tiny_store(tmp_path_factory.mktemp("tiny") / "scenes", scenes=42)
