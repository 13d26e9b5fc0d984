from __future__ import annotations

import errno
import json
import multiprocessing
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from modnet.errors import RunFailed
from modnet.store import (
    RunFolder,
    Store,
    atomic_file,
    atomic_folder,
    atomic_link,
    atomic_write_json,
    atomic_write_text,
    canonical_sha256,
    disk_errors,
    load_network,
    load_tensors,
    save_network,
    save_tensors,
    settle,
    sha256_file,
)


class Dies(BaseException):
    """Stands for the end of the process."""


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_file_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    atomic_write_json(path, {"x": 1})
    with suppress(Dies), atomic_file(path) as temporary:
        temporary.write_text("half of")
        raise Dies
    assert json.loads(path.read_text()) == {"x": 1}
    atomic_write_text(path, "new")
    assert tree(tmp_path) == {"deep/a.json": b"new"}


def write_folder(path: Path, content: str) -> None:
    with atomic_folder(path) as folder:
        (folder / "a").write_text(content)
        (folder / "b").write_text(content)


@pytest.mark.parametrize("call", range(12))
@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_survives_death_at_every_disk_operation(
    call: int, exists: bool, tmp_path: Path, monkeypatch: Any
) -> None:
    """Whatever renaming, flushing or removing is the last, the folder is whole afterwards, old or new."""
    path, done = tmp_path / "last", 0
    if exists:
        write_folder(path, "old")

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*args: Any, **kwargs: Any) -> Any:
            nonlocal done
            done += 1
            if done > call:
                raise Dies
            return real(*args, **kwargs)

        return operation

    with monkeypatch.context() as patch:
        for owner, name in ((os, "fsync"), (os, "rename"), (os, "replace"), (Path, "replace")):
            patch.setattr(owner, name, dying(getattr(owner, name)))
        patch.setattr("shutil.rmtree", dying(__import__("shutil").rmtree))
        with suppress(Dies):
            write_folder(path, "new")
    settle(path)
    found = tree(tmp_path)
    allowed = [{f"last/{n}": content for n in "ab"} for content in ((b"old", b"new") if exists else (b"new",))]
    assert found in allowed or (not exists and found == {})


def test_leftovers_of_a_dead_process_are_removed(tmp_path: Path) -> None:
    write_folder(tmp_path / "last", "good")
    (tmp_path / ".last.99.tmp").mkdir()
    (tmp_path / ".last.99.tmp" / "a").write_text("torn")
    settle(tmp_path / "last")
    assert tree(tmp_path) == {"last/a": b"good", "last/b": b"good"}
    settle(tmp_path / "nowhere" / "last")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_readable_paragraph(error: Exception, tmp_path: Path) -> None:
    write_folder(tmp_path / "last", "good")
    message = r"last could not be written: .*No space left.*make room"
    with pytest.raises(RunFailed, match=message), atomic_folder(tmp_path / "last"):
        raise error
    assert tree(tmp_path) == {"last/a": b"good", "last/b": b"good"}


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    message = rf"could not be written: {tmp_path}/runs is a file where a folder is needed.*--runs DIR"
    for store in (Store(tmp_path / "runs"), Store(tmp_path / "runs" / "store")):
        assert not store.is_done("k1")
        (tmp_path / "runs").touch()
        with pytest.raises(RunFailed, match=message):
            store.begin("k1", {})
    run = RunFolder(tmp_path / "runs", "m2mkd", 0)
    with pytest.raises(RunFailed, match=message):
        run.begin("name: m2mkd\n", {})
    with pytest.raises(RunFailed, match=message):
        run.link("meta", "abc")


def test_a_name_that_is_too_long_is_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / ("long" * 100)
    with pytest.raises(RunFailed, match="File name too long.*a shorter name, or choose another place with --runs DIR"):
        atomic_write_text(path / "recipe.yaml", "text")
    with pytest.raises(RunFailed, match="File name too long"):
        Store(path).is_done("k1")


def test_what_is_only_refused_is_not_told_to_make_room(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="Permission denied") as told, disk_errors(tmp_path, "set PLACE"):
        raise PermissionError(errno.EACCES, "Permission denied")
    assert "make room" not in str(told.value)
    assert "set PLACE and run the same command again" in str(told.value)


def test_logs_are_no_artifacts(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = store.begin("k1", {})
    for name in ("metrics.jsonl", "choices.json", "table.csv"):
        (folder / name).write_text("{}")
    store.finish("k1", {})
    assert set(store.manifest("k1")["hashes"]) == {"result.json", "table.csv"}


def test_other_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="strange"), atomic_folder(tmp_path / "last"):
        raise OSError(errno.EIO, "strange")


@given(st.dictionaries(st.text(max_size=4), st.integers() | st.lists(st.floats(allow_nan=False))))
def test_canonical_hash_ignores_order(value: dict[str, Any]) -> None:
    assert canonical_sha256(value) == canonical_sha256(dict(reversed(value.items())))
    assert canonical_sha256(value) != canonical_sha256({**value, "another": None})


def test_tensors_keep_dtype_and_need_not_own_their_storage(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    tensors = {"view": base[1:], "turned": base.T, "half": base.bfloat16(), "number": torch.tensor(3)}
    sha256 = save_tensors(tmp_path / "t.safetensors", tensors)
    loaded = load_tensors(tmp_path / "t.safetensors", sha256, "remedy")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def damage_truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def damage_flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [damage_truncate, damage_flip, Path.unlink])
@pytest.mark.parametrize("file", ["net.safetensors", "net.json"])
def test_a_damaged_network_is_named(damage: Callable[[Path], None], file: str, tmp_path: Path) -> None:
    save_network(tmp_path, "net", {"w": torch.ones(3)}, {"leaves": []})
    damage(tmp_path / file)
    if file == "net.json" and damage is damage_flip:
        return  # its last byte is white space
    with pytest.raises(RunFailed, match=rf"{file}.*delete {tmp_path}"):
        load_network(tmp_path, "net")


def test_a_stage_from_begin_to_done(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert not store.is_done("k1")
    folder = store.begin("k1", {"verb": "train"})
    assert store.manifest("k1") == {"verb": "train", "key": "k1", "status": "running"}
    save_network(folder, "net", {"w": torch.ones(3)}, {})
    store.finish("k1", {"top1": 90.0})
    assert store.is_done("k1")
    assert store.result("k1") == {"top1": 90.0}
    manifest = store.manifest("k1")
    assert manifest["verb"] == "train"
    assert manifest["hashes"]["net.safetensors"] == sha256_file(folder / "net.safetensors")
    assert set(manifest["hashes"]) == {"net.json", "net.safetensors", "result.json"}
    store.begin("k1", {"verb": "other"})
    assert store.manifest("k1") == manifest
    store.release("k1")


def test_a_changed_result_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.begin("k1", {})
    store.finish("k1", {"top1": 90.0})
    (tmp_path / "k1" / "result.json").write_text('{"top1": 99.0}')
    with pytest.raises(RunFailed, match=r"result\.json is missing or was changed"):
        store.result("k1")


def test_a_stage_without_manifest_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="k1"):
        Store(tmp_path).manifest("k1")


def test_two_writers_one_fails_clearly_until_the_other_is_done(tmp_path: Path) -> None:
    first, second = Store(tmp_path), Store(tmp_path)
    first.begin("k1", {})
    with pytest.raises(RunFailed, match=rf"being written by process {os.getpid()}"):
        second.begin("k1", {})
    first.finish("k1", 1)
    with second:
        second.begin("k1", {})
        assert second.is_done("k1")


def _hold(root: Path, began: Any, may_finish: Any) -> None:
    store = Store(root)
    store.begin("k1", {})
    began.set()
    may_finish.wait(20)
    store.finish("k1", "theirs")


def test_the_second_process_waits_with_a_message_and_finds_the_stage_done(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    began, may_finish = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path, began, may_finish))
    other.start()
    assert began.wait(20)
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        may_finish.set()

    with Store(tmp_path, say) as store:
        store.begin("k1", {})
        assert store.result("k1") == "theirs"
    other.join(20)
    assert said == [f"waiting for process {other.pid}, which is working on the same stage (k1)"]


def test_a_run_folder_points_into_the_store(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "runs", "m2mkd", 3)
    with Store(run.store) as store:
        store.begin("abc", {"verb": "train"})
    run.begin("name: m2mkd\n", {"stages": {"meta": "abc"}})
    run.link("meta", "abc")
    run.link("meta", "abc")
    run.write_results({"meta": 1})
    assert run.path == tmp_path / "runs/m2mkd/seed-3"
    assert os.readlink(run.path / "stages/meta") == "../../../store/abc"
    assert (run.path / "stages/meta/begun.json").is_file()
    assert run.record() == {"stages": {"meta": "abc"}}
    (tmp_path / "runs").rename(tmp_path / "moved")
    assert (tmp_path / "moved/m2mkd/seed-3/stages/meta/begun.json").is_file()


def test_a_link_is_replaced(tmp_path: Path) -> None:
    atomic_link(tmp_path / "l", tmp_path / "a")
    atomic_link(tmp_path / "l", tmp_path / "b")
    assert os.readlink(tmp_path / "l") == "b"
