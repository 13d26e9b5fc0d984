from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import logging
import pickle
import shutil
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from modnet.data import cifar, cifar_sources, fashion_mnist, files, idx, sources
from modnet.data.files import Unreachable
from modnet.errors import RunFailed
from modnet.randomness import Key
from modnet.recipe.sources import Cifar, Source

# ---- idx ------------------------------------------------------------------------------------


def as_idx(values: Tensor) -> bytes:
    header = bytes([0, 0, 8, values.dim()]) + struct.pack(f">{values.dim()}I", *values.shape)
    return header + values.numpy().tobytes()


def test_idx_round_trip() -> None:
    values = torch.arange(24).view(2, 3, 4).to(torch.uint8)
    assert torch.equal(idx.parse(as_idx(values), "here"), values)


@pytest.mark.parametrize("cut", [0, 3, 7, 15, 17, 39])
def test_idx_that_ends_early_or_is_something_else(cut: int) -> None:
    raw = as_idx(torch.zeros(2, 3, 4, dtype=torch.uint8))
    with pytest.raises(RunFailed, match="here is corrupt"):
        idx.parse(raw[:cut], "here")
    with pytest.raises(RunFailed, match="here is corrupt"):
        idx.parse(b"\x89PNG" + raw, "here")
    with pytest.raises(RunFailed, match=r"2 x 3 x 4 bytes, but 25 follow"):
        idx.parse(raw + b"x", "here")


# ---- Fashion-MNIST --------------------------------------------------------------------------


@pytest.fixture
def clothes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, bytes]:
    """A tiny data set in the published layout, whose hashes are taken for the published ones."""
    contents = {}
    for part, count in (("train", 60), ("t10k", 20)):
        images = (Key.of(0).bits(torch.arange(count), 784) & 255).to(torch.uint8)
        contents[f"{part}-images-idx3-ubyte"] = as_idx(images.view(count, 28, 28))
        contents[f"{part}-labels-idx1-ubyte"] = as_idx((torch.arange(count) % 10).to(torch.uint8))
    hashes = {name: hashlib.sha256(raw).hexdigest() for name, raw in contents.items()}
    monkeypatch.setattr(fashion_mnist, "FILES", hashes)
    monkeypatch.setattr(fashion_mnist, "SYSTEM", tmp_path / "usr" / "share")
    monkeypatch.setenv("MODNET_DATA", str(tmp_path / "data"))
    return contents


def put(folder: Path, contents: dict[str, bytes], packed: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, raw in contents.items():
        path = folder / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(raw) if packed else raw)


def unreachable(*args: object) -> Path:
    raise Unreachable("nothing there")


@pytest.mark.parametrize("packed", [True, False])
def test_fashion_mnist_in_torchvisions_layout(
    clothes: dict[str, bytes], tmp_path: Path, packed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path / "data" / "FashionMNIST" / "raw", clothes, packed)
    with caplog.at_level(logging.INFO, "modnet.data"):
        train, test = sources.fashion_mnist(Source(name="fashion-mnist")).read()
    assert (len(train), len(test)) == (60, 20)
    assert train.images.shape == (60, 1, 28, 28)
    assert train.labels[:3].tolist() == [0, 1, 2]
    assert [r.getMessage().split(" from ")[0] for r in caplog.records] == ["Fashion-MNIST: read"]


def test_fashion_mnist_installed_by_debian_is_found(clothes: dict[str, bytes], tmp_path: Path) -> None:
    put(tmp_path / "usr" / "share", clothes)
    assert fashion_mnist.read() == clothes


def test_fashion_mnist_is_fetched_from_debian_where_the_mirror_fails_and_kept(
    clothes: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def package(folder: Path) -> Path:
        put(folder / "there", clothes)
        return folder / "there"

    monkeypatch.setattr(fashion_mnist, "download", unreachable)
    monkeypatch.setattr(fashion_mnist, "_from_debian", package)
    assert fashion_mnist.read() == clothes
    kept = tmp_path / "data" / "FashionMNIST" / "raw"
    assert sorted(p.name for p in kept.iterdir()) == sorted(f"{n}.gz" for n in clothes)
    monkeypatch.setattr(fashion_mnist, "_from_debian", unreachable)
    assert fashion_mnist.read() == clothes


def test_a_fetched_file_with_a_wrong_hash_is_not_kept(
    clothes: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forged(url: str, target: Path) -> None:
        target.write_bytes(gzip.compress(b"something else"))

    monkeypatch.setattr(fashion_mnist, "download", forged)
    monkeypatch.setattr(fashion_mnist, "_from_debian", unreachable)
    with pytest.raises(RunFailed, match=r"could not be fetched.*SHA-256.*nothing there.*By hand"):
        fashion_mnist.read()
    assert not (tmp_path / "data").exists()


def test_damaged_local_files_are_named(clothes: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "data" / "FashionMNIST" / "raw"
    put(folder, clothes)
    path = folder / "t10k-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunFailed, match=r"t10k-images-idx3-ubyte\.gz is corrupt.*Delete it; it will be fetched"):
        fashion_mnist.read()
    path.write_bytes(gzip.compress(b"something else"))
    with pytest.raises(RunFailed, match=r"is not the published file.*SHA-256"):
        fashion_mnist.read()


def test_a_damaged_file_of_the_system_is_not_fetched_again(clothes: dict[str, bytes], tmp_path: Path) -> None:
    put(tmp_path / "usr" / "share", clothes)
    path = tmp_path / "usr" / "share" / "t10k-images-idx3-ubyte.gz"
    for content in (b"no archive", gzip.compress(b"something else")):
        path.write_bytes(content)
        with pytest.raises(RunFailed, match=rf"install it anew, or put a good copy into {tmp_path}/data") as told:
            fashion_mnist.read()
        assert "Delete it" not in str(told.value)


def test_debian_without_apt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    with pytest.raises(Unreachable, match="there is no apt-get here"):
        fashion_mnist._from_debian(tmp_path)


def test_debian_with_empty_lists_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = iter(["E: Unable to locate package", "E: Could not resolve"])
    monkeypatch.setattr(shutil, "which", lambda tool: tool)
    monkeypatch.setattr(fashion_mnist, "_run", lambda command, folder: next(said))
    with pytest.raises(Unreachable, match=r"Could not resolve \(run 'apt-get update' as root"):
        fashion_mnist._from_debian(tmp_path)


def test_labels_that_do_not_go_with_the_images(clothes: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = dict(clothes)
    wrong["train-labels-idx1-ubyte"] = as_idx(torch.full((60,), 10, dtype=torch.uint8))
    monkeypatch.setattr(fashion_mnist, "read", lambda: wrong)
    with pytest.raises(RunFailed, match="label out of range: sample 0 has label 10"):
        sources.fashion_mnist(Source(name="fashion-mnist")).read()
    wrong["train-labels-idx1-ubyte"] = as_idx(torch.zeros(59, dtype=torch.uint8))
    with pytest.raises(RunFailed, match="do not go with the images"):
        sources.fashion_mnist(Source(name="fashion-mnist")).read()


# ---- CIFAR ----------------------------------------------------------------------------------


def record(layout: cifar.Layout, number: int) -> tuple[bytes, int]:
    label = number % layout.classes
    pixels = (Key.of(number).bits(torch.arange(1), 3072)[0] & 255).to(torch.uint8)
    return pixels.numpy().tobytes(), label


def binary(layout: cifar.Layout, numbers: list[int]) -> bytes:
    rows = [record(layout, n) for n in numbers]
    return b"".join(bytes([7] * (layout.label_bytes - 1) + [y]) + pixels for pixels, y in rows)


def python(layout: cifar.Layout, numbers: list[int]) -> bytes:
    """A pickle of protocol 2 as Python 2 wrote it: byte strings by the opcode for them."""
    rows = [record(layout, n) for n in numbers]
    pixels = b"".join(p for p, _ in rows)
    labels = b"".join(b"K" + bytes([y]) for _, y in rows)

    def short(text: str) -> bytes:
        return b"U" + bytes([len(text)]) + text.encode()

    label_list = short(layout.label_key) + b"q\x02]q\x03(" + labels + b"e"
    data = short("data") + b"q\x04T" + struct.pack("<i", len(pixels)) + pixels + b"q\x05"
    name = short("batch_label") + b"q\x01" + short("training batch 1 of 5") + b"q\x06"
    coarse = short("coarse_labels") + b"]q\x07(K\x01K\x02e"
    return b"\x80\x02}q\x00(" + name + label_list + data + coarse + b"u."


def archive(path: Path, members: dict[str, bytes]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, raw in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture(params=["binary", "python"])
def stored(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Miniature archives of both data sets, in the layout of the published ones."""
    monkeypatch.setenv("MODNET_DATA", str(tmp_path))
    for layout in (cifar.CIFAR10, cifar.CIFAR100):
        kind: cifar.Archive = getattr(layout, request.param)
        write = binary if request.param == "binary" else python
        parts = {m: write(layout, [3 * i, 3 * i + 1, 101]) for i, m in enumerate(kind.train)}
        found = archive(tmp_path / kind.file, {**parts, kind.test: write(layout, [50, 51])})
        replaced = cifar.Archive(kind.file, found, kind.train, kind.test)
        values = {**layout.__dict__, request.param: replaced}
        monkeypatch.setattr(cifar, layout.title.replace("-", ""), cifar.Layout(**values))
    return tmp_path


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_read_from_either_archive(stored: Path, name: str) -> None:
    described = getattr(cifar_sources, name)(Cifar(name=name))
    train, test = described.read()
    batches = 5 if name == "cifar10" else 1
    assert (len(train), len(test)) == (3 * batches, 2)
    assert len(set(described.classes)) == len(described.classes) == int(name[5:])
    pixels, label = record(cifar.CIFAR10 if name == "cifar10" else cifar.CIFAR100, 51)
    assert test.images[1].numpy().tobytes() == pixels
    assert int(test.labels[1]) == label


def test_cifar_is_enlarged_for_networks_of_larger_pictures(stored: Path) -> None:
    plain, large = (cifar_sources.cifar100(Cifar(name="cifar100", size=size)) for size in (32, 224))
    assert large.fingerprint != plain.fingerprint
    (_, small), (_, test) = plain.read(), large.read()
    assert torch.equal(test.labels, small.labels)
    image = Image.fromarray(small.images[1].permute(1, 2, 0).numpy()).resize((224, 224), Image.Resampling.BICUBIC)
    assert torch.equal(test.images[1], torch.from_numpy(np.array(image)).permute(2, 0, 1))


def test_cifar_with_a_wrong_md5_is_refused(stored: Path) -> None:
    path = next(stored.glob("cifar-10-*.tar.gz"))
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(RunFailed, match="is not the published .* its MD5 is"):
        cifar.read(cifar.CIFAR10)


def test_cifar_that_cannot_be_reached_says_where_to_put_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MODNET_DATA", str(tmp_path))
    monkeypatch.setattr(cifar, "download", unreachable)
    with pytest.raises(RunFailed, match=r"By hand: put cifar-10-binary\.tar\.gz.*" + str(tmp_path)):
        cifar.read(cifar.CIFAR10)
    assert list(tmp_path.iterdir()) == []


def test_a_pickle_is_never_executed() -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (pytest.fail, ("executed",))

    with pytest.raises(RunFailed, match="0 labels do not go with"):
        cifar.parse(pickle.dumps(Evil(), 2), cifar.CIFAR10, False, "here")


def test_malformed_cifar_members() -> None:
    with pytest.raises(RunFailed, match="not a whole number of records"):
        cifar.parse(b"\0" * 5000, cifar.CIFAR10, True, "here")
    with pytest.raises(RunFailed, match="here is corrupt"):
        cifar.parse(b"\x80\x02}q\x00(U\x20short", cifar.CIFAR10, False, "here")


# ---- files ----------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_not_an_unreachable_place(
    clothes: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").write_bytes(bytes(1 << 17))
    address = (tmp_path / "there").as_uri()
    with pytest.raises(RunFailed, match=r"No space left on device.*MODNET_DATA"):
        files.download(address, Path("/dev/full"))
    monkeypatch.setattr(fashion_mnist, "download", lambda url, target: files.download(address, Path("/dev/full")))
    with pytest.raises(RunFailed, match="^/dev/full could not be written: No space left"):
        fashion_mnist.read()


def test_a_connection_that_breaks_is_an_unreachable_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Breaking(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise http.client.IncompleteRead(b"", 100)

    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: Breaking())
    with pytest.raises(Unreachable, match="IncompleteRead"):
        files.download("http://there/file", tmp_path / "file")


def test_an_unreachable_place_says_why(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="unknown url type"):
        files.download("nowhere://at.all/file", tmp_path / "file")
    (tmp_path / "there").write_bytes(b"content")
    files.download((tmp_path / "there").as_uri(), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"content"
