"""The worlds stepped here are so small that a second thread only costs."""

import pytest


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    pass
