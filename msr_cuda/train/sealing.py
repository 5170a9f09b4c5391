"""Files that only a key opens, and that show when a byte of them was changed.

For weights at rest: on a disk that others read, in a bucket, on a device in the field::

    >>> from msr_cuda.train import sealing
    >>> key = sealing.new_key()  # 32 bytes; keep them somewhere else
    >>> sealing.seal(b"weights", key, chunk=4) == b"weights"
    False

AES-256-GCM in chunks, by the ``cryptography`` package. Each chunk's nonce has its number and
whether it is the last one, so that chunks that are missing, doubled or in another order are
noticed; nothing is given out before the last one was found to be right. Source: Hoang,
Reyhanitabar, Rogaway and Vizár 2015, "Online Authenticated-Encryption and its Nonce-Reuse
Misuse-Resistance" (STREAM). From a passphrase the key is made by scrypt (RFC 7914), with the
parameters that OWASP recommends.
"""

from __future__ import annotations

import argparse
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ._errors import TrainingError, require

SUFFIX = ".sealed"
KEY_BYTES = 32
_MAGIC = b"msr_cuda sealed 1\n"
_SALT_BYTES, _PREFIX_BYTES, _TAG_BYTES = 16, 7, 16
_CHUNK = 64 * 2**20
_HEADER = struct.Struct(f">{len(_MAGIC)}s{_SALT_BYTES}s{_PREFIX_BYTES}sI")

Key = bytes | str


def new_key() -> bytes:
    """A random key of 32 bytes."""
    return os.urandom(KEY_BYTES)


def read_key(path: str | Path) -> bytes:
    """The key in a file, as 32 bytes or as 64 hexadecimal digits.

    Raises:
        TrainingError: it cannot be read, or is something else.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise TrainingError(f"{path}: {error.strerror or error}") from error
    if len(content) == KEY_BYTES:
        return content
    try:
        key = bytes.fromhex(content.decode("ascii"))
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise TrainingError(
            f"{path}: expected a key of {KEY_BYTES} bytes, or {2 * KEY_BYTES} hexadecimal digits"
        )
    return key


def _cipher(key: Key, salt: bytes) -> Any:
    require("cryptography")
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    if isinstance(key, str):
        if not key:
            raise TrainingError("the passphrase: expected at least one character")
        made = Scrypt(salt=salt, length=KEY_BYTES, n=2**17, r=8, p=1)
        return AESGCM(made.derive(key.encode("utf-8")))
    if len(key) != KEY_BYTES:
        raise TrainingError(f"the key: expected {KEY_BYTES} bytes, got {len(key)}")
    return AESGCM(key)


def _nonce(prefix: bytes, number: int, last: bool) -> bytes:
    return prefix + struct.pack(">IB", number, last)


def seal(content: bytes, key: Key, *, chunk: int = _CHUNK) -> bytes:
    """Encrypts and authenticates.

    Args:
        content: of a file.
        key: 32 bytes, or a passphrase.
        chunk: bytes that are encrypted at a time.

    Raises:
        TrainingError: the key has another length; ``cryptography`` is not installed.
    """
    salt, prefix = os.urandom(_SALT_BYTES), os.urandom(_PREFIX_BYTES)
    header = _HEADER.pack(_MAGIC, salt, prefix, chunk)
    cipher = _cipher(key, salt)
    parts = [header]
    count = max(1, -(-len(content) // chunk))
    view = memoryview(content)
    for number in range(count):
        part = view[number * chunk : (number + 1) * chunk]
        parts.append(cipher.encrypt(_nonce(prefix, number, number == count - 1), part, header))
    return b"".join(parts)


def is_sealed(content: bytes) -> bool:
    """Whether it begins as :func:`seal` begins."""
    return content.startswith(_MAGIC)


def unseal(content: bytes, key: Key, source: str = "the content") -> bytes:
    """What was sealed, all of it or nothing.

    Args:
        content: of :func:`seal`.
        key: that it was sealed with.
        source: for messages.

    Raises:
        TrainingError: another key, or a byte was changed, added or taken away.
    """
    if not is_sealed(content) or len(content) < _HEADER.size + _TAG_BYTES:
        raise TrainingError(f"{source}: expected what was sealed, got something else or a part")
    header = content[: _HEADER.size]
    _, salt, prefix, chunk = _HEADER.unpack(header)
    cipher = _cipher(key, salt)
    from cryptography.exceptions import InvalidTag

    step = chunk + _TAG_BYTES
    view = memoryview(content)[_HEADER.size :]
    count = -(-len(view) // step)
    parts = []
    try:
        for number in range(count):
            part = view[number * step : (number + 1) * step]
            parts.append(cipher.decrypt(_nonce(prefix, number, number == count - 1), part, header))
    except (InvalidTag, ValueError) as error:
        raise TrainingError(
            f"{source}: the key is another one, or the file was changed; nothing was loaded"
        ) from error
    return b"".join(parts)


def add_parsers(commands: Any) -> None:
    """Adds ``seal`` and ``unseal`` to ``argparse``'s subparsers."""
    for name, about in (
        ("seal", "encrypts a file, FILE to FILE" + SUFFIX),
        ("unseal", "and back"),
    ):
        parser = commands.add_parser(name, help=about)
        parser.add_argument("file", type=Path, metavar="FILE")
        parser.add_argument("--key", type=Path, required=True, metavar="KEYFILE",
            help="32 bytes or 64 hexadecimal digits")  # fmt: skip
        if name == "seal":
            parser.add_argument("--new-key", action="store_true", help="write a random one first")
        parser.set_defaults(run=_seal_command if name == "seal" else _unseal_command)


def _seal_command(arguments: argparse.Namespace) -> int:
    def work() -> Path:
        if arguments.new_key:
            # For its owner alone, and never over another one.
            with open(arguments.key, "xb", opener=lambda p, f: os.open(p, f, 0o600)) as file:
                file.write(new_key().hex().encode() + b"\n")
        elif not arguments.key.exists():
            raise TrainingError(f"{arguments.key}: there is no such file; --new-key makes one")
        target: Path = arguments.file.with_name(arguments.file.name + SUFFIX)
        return _write(target, seal(arguments.file.read_bytes(), read_key(arguments.key)))

    return _run("seal", work)


def _unseal_command(arguments: argparse.Namespace) -> int:
    def work() -> Path:
        if arguments.file.suffix != SUFFIX:
            raise TrainingError(f"{arguments.file}: expected a file that ends in {SUFFIX}")
        content = unseal(arguments.file.read_bytes(), read_key(arguments.key), str(arguments.file))
        return _write(arguments.file.with_suffix(""), content)

    return _run("unseal", work)


def _write(target: Path, content: bytes) -> Path:
    from .checkpoint import write_atomically

    write_atomically(target, content)
    return target


def _run(command: str, work: Callable[[], Path]) -> int:
    try:
        print(work())
    except (TrainingError, OSError) as error:
        print(f"msr_cuda {command}: {error}", file=sys.stderr)
        return 1
    return 0
