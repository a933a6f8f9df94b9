"""Reading and writing safetensors files: clear errors, and never a half-written file."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor


def write(path: str | os.PathLike[str], tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors to a file that appears complete or not at all, also if the power fails.

    Args:
        path: The file; one that exists is replaced. Its folder is made if missing.
        tensors: Any number of tensors, on any device.
        metadata: Text stored beside them.

    Raises:
        ImportError: If safetensors is not installed.
        OSError: If the file cannot be written.
    """
    save = _import().torch.save
    # A copy in the contiguous format: safetensors stores no strides and refuses tensors that share memory.
    write_bytes(path, save({name: _standalone(tensor) for name, tensor in tensors.items()}, metadata=metadata))


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file that appears complete or not at all, also if the power fails; its folder is made if missing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(path.parent)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata.

    Args:
        path: A safetensors file.

    Returns:
        The tensors, on the CPU, and the metadata.

    Raises:
        ImportError: If safetensors is not installed.
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, damaged or no safetensors file.
    """
    safetensors = _import()
    path = Path(path)
    if not path.is_file():
        reason = "does not exist" if not path.exists() else "is a folder, not a file" if path.is_dir() else "is no file"
        raise FileNotFoundError(f"checkpoint {path} {reason}")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is truncated, damaged or no safetensors file ({error})") from error


def _standalone(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().clone()


def _import() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise ImportError('checkpoints need safetensors; install it with: pip install "dwsep[train]"') from error
    return safetensors


def _umask() -> int:
    # mkstemp makes a file that only its owner can read; the umask says what the user wants, and can only be read
    # by setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
