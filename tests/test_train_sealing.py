"""Weights at rest: what the key opens, what another key or a changed byte does."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch
from conftest import require_or_skip

from msr_cuda.__main__ import main
from msr_cuda.train import Config, TrainingError, checkpoint, load_network, sealing
from msr_cuda.train.networks import build_network

for package in ("cryptography", "safetensors"):
    require_or_skip(package)

KEY = bytes(range(32))
CHUNK = 7


@pytest.mark.parametrize("length", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 100])
@pytest.mark.parametrize("key", [KEY, "correct horse"], ids=["key", "passphrase"])
def test_what_was_sealed_comes_back(length: int, key: sealing.Key) -> None:
    content = os.urandom(length)
    sealed = sealing.seal(content, key, chunk=CHUNK)
    assert sealing.is_sealed(sealed)
    assert not sealing.is_sealed(content)
    assert len(content) < 8 or content not in sealed
    assert sealing.unseal(sealed, key) == content


def test_the_same_content_is_sealed_differently_each_time() -> None:
    assert sealing.seal(b"content", KEY) != sealing.seal(b"content", KEY)


@pytest.mark.parametrize("other", [bytes(32), "a passphrase"], ids=["key", "passphrase"])
def test_another_key(other: sealing.Key) -> None:
    with pytest.raises(TrainingError, match="weights: the key is another one, or the file"):
        sealing.unseal(sealing.seal(b"content", KEY), other, "weights")


def test_every_byte_counts() -> None:
    sealed = sealing.seal(bytes(20), KEY, chunk=CHUNK)
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        with pytest.raises(TrainingError):
            sealing.unseal(bytes(changed), KEY)


def test_chunks_that_are_missing_doubled_or_moved() -> None:
    sealed = sealing.seal(bytes(range(3 * CHUNK)), KEY, chunk=CHUNK)
    header, step = len(sealed) - 3 * (CHUNK + 16), CHUNK + 16
    a, b, c = (sealed[header + i * step : header + (i + 1) * step] for i in range(3))
    begin = sealed[:header]
    assert begin + a + b + c == sealed
    for parts in ([a, b], [a, c], [b, a, c], [a, b, c, c], [a, a, b, c], [c], []):
        with pytest.raises(TrainingError):
            sealing.unseal(begin + b"".join(parts), KEY)
    for length in range(len(sealed)):
        with pytest.raises(TrainingError):
            sealing.unseal(sealed[:length], KEY)
    with pytest.raises(TrainingError):
        sealing.unseal(sealed + b"x", KEY)


def test_keys_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="expected 32 bytes, got 16"):
        sealing.seal(b"", bytes(16))
    with pytest.raises(TrainingError, match="at least one character"):
        sealing.seal(b"", "")
    file = tmp_path / "key"
    file.write_text("abc")
    with pytest.raises(TrainingError, match="expected a key of 32 bytes, or 64 hex"):
        sealing.read_key(file)
    with pytest.raises(TrainingError, match="No such file"):
        sealing.read_key(tmp_path / "none")
    file.write_text(KEY.hex() + "\n")
    assert sealing.read_key(file) == KEY
    file.write_bytes(KEY)
    assert sealing.read_key(file) == KEY


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    config = Config(width=8, scales=(1.0,))
    torch.manual_seed(0)
    path = tmp_path / "best.safetensors"
    checkpoint.save_weights(path, build_network(config, 3).state_dict(), config, ["a", "b", "c"])
    return path


def test_a_network_is_loaded_from_sealed_weights(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "key"
    assert main(["seal", str(weights), "--key", str(key)]) == 1
    assert "there is no such file; --new-key makes one" in capsys.readouterr().err
    assert main(["seal", str(weights), "--key", str(key), "--new-key"]) == 0
    sealed = Path(capsys.readouterr().out.strip())
    assert sealed == tmp_path / "best.safetensors.sealed"
    if os.name != "nt":
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    plain, config, classes = load_network(weights)
    weights.unlink()
    opened, again, names = load_network(sealed, sealing.read_key(key))
    assert (again, names) == (config, classes)
    x = torch.rand(1, 3, 40, 33)
    assert torch.equal(opened(x), plain(x))

    with pytest.raises(TrainingError, match="it is sealed, and needs its key"):
        load_network(sealed)
    content = bytearray(sealed.read_bytes())
    content[-1] ^= 1
    sealed.write_bytes(bytes(content))
    with pytest.raises(TrainingError, match="nothing was loaded"):
        load_network(sealed, sealing.read_key(key))


def test_the_commands(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, key = weights.read_bytes(), tmp_path / "key"
    key.write_bytes(KEY)
    sealed = str(weights) + sealing.SUFFIX
    assert main(["seal", str(weights), "--key", str(key)]) == 0
    weights.unlink()
    assert main(["unseal", sealed, "--key", str(key)]) == 0
    assert weights.read_bytes() == content
    capsys.readouterr()
    key.write_bytes(bytes(32))
    assert main(["unseal", sealed, "--key", str(key)]) == 1
    assert "the key is another one" in capsys.readouterr().err
    assert main(["seal", str(weights), "--key", str(key), "--new-key"]) == 1  # it is there
    assert "File exists" in capsys.readouterr().err
    assert key.read_bytes() == bytes(32)
    assert main(["unseal", str(weights), "--key", str(key)]) == 1
    assert "expected a file that ends in .sealed" in capsys.readouterr().err
