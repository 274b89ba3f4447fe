"""Weights from files, or a refusal that says what is wrong with the file.

`load_weights` for what this package wrote; `read_weights` and `fill` for files of others that a key names.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from vipra_ros.config import ConfigError


def load_weights(module: nn.Module, path: str | Path, device: str = "cpu") -> None:
    """Give `module`, which may be on the meta device, the weights in `path`, on `device`.

    Raises:
        ConfigError: unreadable, of another architecture, of another kind of number, or not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path, device=device)
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
        raise ConfigError(f"{path}: unreadable ({error}); copy the whole folder again") from None
    state = module.state_dict()
    expected = {k: v.shape for k, v in state.items()}
    for key in sorted(set(expected) - set(tensors)):
        raise ConfigError(f"{path}: weight {key} is missing; the file belongs to another architecture")
    for key in sorted(set(tensors) - set(expected)):
        raise ConfigError(f"{path}: weight {key} is unknown; the file belongs to another architecture")
    for key, value in tensors.items():
        if value.shape != expected[key]:
            raise ConfigError(
                f"{path}: weight {key} is {tuple(value.shape)}, expected {tuple(expected[key])}; "
                "the description beside it belongs to other weights"
            )
        if value.is_floating_point() != state[key].is_floating_point() or value.is_complex():
            raise ConfigError(f"{path}: weight {key} holds {value.dtype}, expected {state[key].dtype}")
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ConfigError(f"{path}: weight {key} has values that are not finite; the training diverged")
    module.load_state_dict(tensors, assign=True)


def read_weights(path: str | Path, key: str, what: str) -> dict[str, Tensor]:
    """Tensors of a local .pth or .safetensors file.

    Raises:
        ConfigError: no such file, or it holds something else.
    """
    path = Path(path)
    if not str(path).strip(".") or not path.is_file():
        raise ConfigError(f"{key} = {str(path)!r}: no such file; give a local file with the weights of {what}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a wrong file fails in as many ways as there are files
        line = str(error).splitlines()[0]
        raise ConfigError(f"{key} = {str(path)!r}: cannot be read ({line}); give {what}") from None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ConfigError(f"{key} = {str(path)!r}: is no table of tensors; give {what}")
    return state


def fill(net: nn.Module, state: dict[str, Tensor], path: str | Path, key: str, what: str) -> None:
    """Load `state` into `net`, all of it or not at all."""
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        line = " ".join(str(error).split())[:160]
        raise ConfigError(f"{key} = {str(path)!r}: belongs to another network ({line}); give {what}") from None


def file_hash(path: str | Path) -> str:
    """16 hex digits of a file's content."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        for part in iter(lambda: file.read(1 << 20), b""):
            digest.update(part)
    return digest.hexdigest()[:16]
