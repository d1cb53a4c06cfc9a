"""Files and folders into a sandbox and out of it."""

from __future__ import annotations

import asyncio
import io
import tarfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from envs.sandbox.base import Sandbox

_PACK = 'file=$(mktemp) && tar -C "$0" -cf "$file" . && echo "$file"'


async def upload_tree(write: Callable[..., Awaitable[None]], source: Path, path: str) -> None:
    """Writes a file, or every file of a folder, keeping which ones can be executed. Links are followed.

    Raises:
        FileNotFoundError: no such source.
    """
    if source.is_file():
        await write(path, await asyncio.to_thread(source.read_bytes), executable=_executable(source))
        return
    if not source.is_dir():
        raise FileNotFoundError(f"no file or folder {source} to upload")
    for file in sorted(source.rglob("*")):
        if file.is_file():
            data = await asyncio.to_thread(file.read_bytes)
            await write(f"{path}/{file.relative_to(source).as_posix()}", data, executable=_executable(file))


async def download_tree(sandbox: Sandbox, path: str, target: Path) -> None:
    """Copies a file, or a folder by way of an archive whose members are checked: nothing lands outside of `target`.

    Raises:
        OSError: no such path, or a member that leads elsewhere.
    """
    try:
        data = await sandbox.read(path)
    except IsADirectoryError:
        packed = await sandbox.exec(["sh", "-c", _PACK, path])
        if not packed.ok:
            raise OSError(f"cannot pack {path} in the sandbox: {packed.text()}") from None
        name = packed.stdout.decode("utf-8", "replace").strip()
        archive = await sandbox.read(name)
        await sandbox.exec(["rm", name])
        await asyncio.to_thread(_unpack, archive, target)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(target.write_bytes, data)


def _unpack(archive: bytes, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(target, filter="data")
    except tarfile.TarError as error:
        raise OSError(f"the sandbox's files cannot be taken out: {error}") from error


def _executable(file: Path) -> bool:
    return bool(file.stat().st_mode & 0o100)
