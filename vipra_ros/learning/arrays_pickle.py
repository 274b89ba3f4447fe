"""Unpickle arrays and plain containers, and nothing else.

A pickle is a program. The published VQGAN is one, so it is run with a list of allowed names: numpy's array
constructors, dict, OrderedDict and flax's FrozenDict (as a plain dict). Any other name is refused before its module
is imported.
"""

from __future__ import annotations

import collections
import io
import pickle
from pathlib import Path

import numpy as np

from vipra_ros.config import ConfigError

try:
    from numpy._core import multiarray, numeric
except ImportError:  # numpy 1
    from numpy.core import multiarray, numeric


def _jax_array(build, args, state, *_):
    """What jax's own function of this name does, to a numpy array."""
    if build is not multiarray._reconstruct:
        raise ConfigError("a pickled jax array is not built by numpy; it was made to run something: do not use it")
    array = build(*args)
    array.__setstate__(state)
    return array


def _bytes(text: str, encoding: str) -> bytes:
    """How protocol 2 and below carry bytes: `_codecs.encode(text, "latin1")`. No other codec is run."""
    if encoding != "latin1":
        raise ConfigError(f"it asks for the codec {encoding!r}; do not use this file")
    return text.encode("latin1")


ALLOWED = {
    ("_codecs", "encode"): _bytes,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("builtins", "dict"): dict,
    ("flax.core.frozen_dict", "FrozenDict"): dict,
    ("jax._src.array", "_reconstruct_array"): _jax_array,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): multiarray._reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): numeric._frombuffer for core in ("core", "_core")},
}


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise ConfigError(f"it asks for {module}.{name}, which is no array; do not use this file") from None

    def persistent_load(self, pid):
        raise ConfigError(f"it asks for the outside object {pid!r}; do not use this file")


def load(path: str | Path) -> dict[str, np.ndarray]:
    """Flat {"encoder/Conv_0/kernel": array} of a pickled tree of arrays; a leading `params` is taken off.

    Raises:
        ConfigError: unreadable, truncated, holding anything but dictionaries of numeric arrays, or asking for more.
    """
    path = Path(path)
    try:
        tree = _Arrays(io.BytesIO(path.read_bytes())).load()
    except ConfigError as error:
        raise ConfigError(f"{path}: refused: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path}: unreadable ({error.strerror}); give the pickled VQGAN") from None
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ConfigError(f"{path}: no readable pickle ({type(error).__name__}: {error}); copy it again") from None
    flat: dict[str, np.ndarray] = {}
    _flatten(tree, "", flat, path)
    return {key.removeprefix("params/"): value for key, value in flat.items()}


def _flatten(tree, prefix: str, flat: dict, path: Path, depth: int = 0) -> None:
    if isinstance(tree, dict) and depth < 20:
        for key, value in tree.items():
            _flatten(value, f"{prefix}/{key}" if prefix else str(key), flat, path, depth + 1)
    elif isinstance(tree, np.ndarray) and tree.dtype.kind in "fiu":
        flat[prefix] = tree
    else:
        what = f"an array of {tree.dtype}" if isinstance(tree, np.ndarray) else f"a {type(tree).__name__}"
        raise ConfigError(f"{path}: {prefix or 'the whole'} is {what}, expected numbers; give the pickled VQGAN")
