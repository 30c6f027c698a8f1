"""Files are whole or absent, and no folder is brought back."""

import errno
import os
from pathlib import Path

import pytest

from sde_score.files import write_atomically, write_bytes


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_the_old_file_survives_a_failure_at_any_call(tmp_path, monkeypatch, broken):
    path = tmp_path / "a.json"
    write_bytes(path, b"old")

    def fail(*args):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError):
        write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_no_folder_is_made(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder.*gone"):
        write_bytes(tmp_path / "gone" / "a.json", b"{}")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_two_processes_that_write_one_file(tmp_path):
    """Each writes a whole file of its own; the last one stays."""
    path = tmp_path / "report.html"

    def write(file):
        file.write(b"mine, ")
        child = os.fork()
        if child == 0:
            try:
                write_bytes(path, b"another's")
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert path.read_bytes() == b"another's"
        file.write(b"to the end")

    write_atomically(path, write)
    assert path.read_bytes() == b"mine, to the end" and [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_there_is_one_atomic_writer():
    package = Path(__file__).parent.parent / "sde_score"
    renaming = [path for path in package.rglob("*.py") if "os.replace(" in path.read_text()]
    assert renaming == [package / "files.py"]
