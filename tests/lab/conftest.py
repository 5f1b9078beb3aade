"""The lab is not installed; tests import it from the checkout."""

import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


@pytest.fixture(scope="session")
def kernel():
    """A real kernel of the newest series in the cache, or a skip that says what is missing."""
    from abi.errors import KhoError
    from lab import build

    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("QEMU is not installed (qemu-system-x86)")
    if shutil.which("gcc") is None:
        pytest.skip("no C compiler for the guest's init (gcc)")
    spec = os.environ.get("KHO_LAB_TEST_KERNEL", "7.3")
    try:
        return build.find(spec)
    except KhoError as error:
        pytest.skip(f"no real kernel: {error}")


@pytest.fixture
def needs_compiler():
    """Skip where the guest programs cannot be compiled."""
    if shutil.which("gcc") is None:
        pytest.skip("no C compiler (gcc)")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of its own."""
    monkeypatch.setenv("KHO_LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
