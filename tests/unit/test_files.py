"""Atomic files: the old content or the new one, and errors that name the file."""

from __future__ import annotations

import errno
import hashlib

import pytest

from nanochat import files
from nanochat.errors import DataError, StorageError


def test_a_failed_write_leaves_the_old_content_and_no_temporary_file(tmp_path):
    path = tmp_path / "a" / "x.json"
    files.write_text(path, "old")
    with pytest.raises(TypeError), files.atomic_writer(path) as file:
        file.writelines([b"half of the n", None])
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT, errno.EFBIG])
def test_a_failing_volume_is_a_storage_error_that_names_the_file(tmp_path, number):
    path = tmp_path / "shard.parquet"
    with pytest.raises(StorageError, match=r"shard\.parquet") as caught, files.atomic_writer(path):
        raise OSError(number, "no")
    assert caught.value.hint is not None
    assert list(tmp_path.iterdir()) == []


def test_other_system_errors_pass_as_they_are(tmp_path):
    with pytest.raises(PermissionError), files.storage_errors(tmp_path):
        raise PermissionError(errno.EACCES, "no")


def test_a_missing_permission_names_the_file_and_has_its_own_code():
    error = files.no_permission(PermissionError(errno.EACCES, "Permission denied", "/pvc/runs"))
    assert error.exit_code == 77
    assert error.message == "no permission for `/pvc/runs`: Permission denied"


def test_json_comes_back_and_is_stable(tmp_path):
    path = tmp_path / "x.json"
    files.write_json(path, {"b": 1, "a": ["é", None]})
    assert files.read_json(path) == {"a": ["é", None], "b": 1}
    assert path.read_text().index('"a"') < path.read_text().index('"b"')


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"a": 1} x'])
def test_a_damaged_json_file_is_an_error_that_names_it(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.json"):
        files.read_json(path)


def test_a_missing_json_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(DataError, match=r"x\.json. does not exist"):
        files.read_json(tmp_path / "x.json")


def test_not_a_number_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "x.json", {"loss": float("nan")})


def test_hashes_do_not_depend_on_the_order_of_keys(tmp_path):
    assert files.hash_json({"a": 1, "b": 2}) == files.hash_json({"b": 2, "a": 1})
    assert files.hash_json({"a": 1}) != files.hash_json({"a": 2})
    (tmp_path / "x").write_bytes(b"abc")
    assert files.sha256_file(tmp_path / "x") == hashlib.sha256(b"abc").hexdigest()
