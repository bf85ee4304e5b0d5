"""A person's own network, from a Python file and a file of weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from torch import nn

from peira.data.arrays import read_tensors, refuse_absent
from peira.data.errors import DataError


def own_module(reference: str) -> nn.Module:
    """The network that a function in a person's file returns.

    Args:
        reference: `FILE.py:FUNCTION`; the function takes no arguments.

    Raises `DataError` for a file or function that is absent, fails, or returns no module.
    """
    file, colon, name = reference.rpartition(":")
    path = Path(file)
    if not colon or not name.isidentifier():
        raise DataError("not a model", value=reference, expected="FILE.py:FUNCTION")
    refuse_absent(path)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise DataError("not a Python file", path=path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        made = getattr(module, name)()
    except AttributeError as error:
        raise DataError(f"no function {name!r} ({error})", path=path) from error
    # Whatever a person's file raises is theirs to read.
    except Exception as error:
        raise DataError(f"{name}() failed: {type(error).__name__}: {error}", path=path) from error
    if not isinstance(made, nn.Module):
        raise DataError(
            f"{name}() returned no model", path=path, value=type(made).__name__,
            expected="a torch.nn.Module",
        )  # fmt: skip
    return made


def load_weights(path: Path, network: nn.Module) -> None:
    """Put the weights of a .safetensors file into a network.

    Raises `DataError` for a file of another format, or the weights of another network.
    """
    state, _ = read_tensors(path)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        why = " ".join(str(error).split("\n\t")[1:2]) or str(error)
        raise DataError(f"weights of another network: {why.strip()}", path=path) from error
