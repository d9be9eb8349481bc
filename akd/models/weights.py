"""Weights that somebody else saved: read without running anything, and matched to a network by name and shape."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from akd.errors import ExperimentError, reason

#: Where training scripts put the weights among the other things they save.
_WRAPPERS = ("model_state_dict", "state_dict", "model", "net")
#: What wrappers of modules put before every name: DataParallel, torch.compile.
_PREFIXES = ("module.", "_orig_mod.")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a safetensors file or a file of ``torch.save``.

    Raises:
        ExperimentError: missing, damaged, or more than tensors in plain containers, which could run code.
    """
    try:
        there, folder = path.is_file(), path.is_dir()
    except (OSError, ValueError) as error:  # a name longer than the system takes, or with a null byte
        raise ExperimentError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not there:
        raise ExperimentError("is a folder, not a file" if folder else "there is no such file")
    if not path.stat().st_size:
        raise ExperimentError("is damaged: it holds nothing")
    try:
        with open(path, "rb") as file:
            safe = file.read(9)[8:] == b"{"  # eight bytes of length, then the header
        if safe:
            return load_file(path)
        # RepDistiller keeps its command line beside the weights; a namespace only holds values.
        # torch warns of pickles of other versions, and of programs; both are answered below in one line.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise ExperimentError(
            "is damaged, or holds Python objects besides tensors, which are not loaded because they could run code; "
            "save model.state_dict() alone"
        ) from None
    except Exception as error:  # bytes that are no weights make the readers fail in any way
        if "TorchScript" in str(error):
            problem = "is a TorchScript program, which could run code; save model.state_dict() alone"
            raise ExperimentError(problem) from None
        why = "it is neither safetensors nor of torch.save" if isinstance(error, KeyError) else reason(error)
        raise ExperimentError(f"cannot be read, it may be damaged: {why}") from None
    return _unwrapped(content)


def _unwrapped(content: Any) -> dict[str, Tensor]:
    while isinstance(content, Mapping) and not _is_state_dict(content):
        inside = next((content[k] for k in _WRAPPERS if isinstance(content.get(k), Mapping)), None)
        if inside is None:
            break
        content = inside
    if not isinstance(content, Mapping) or not _is_state_dict(content):
        held = ", ".join(str(k) for k in list(content)[:5]) if isinstance(content, Mapping) else type(content).__name__
        raise ExperimentError(f"holds no state dict, but {held or 'nothing'}")
    tensors = dict(content)
    while (prefix := next((p for p in _PREFIXES if all(k.startswith(p) for k in tensors)), None)) is not None:
        tensors = {k.removeprefix(prefix): v for k, v in tensors.items()}
    return tensors


def _is_state_dict(content: Mapping[Any, Any]) -> bool:
    return bool(content) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill a network with the weights of a file: every name and every shape must agree.

    Raises:
        ExperimentError: see :func:`read_weights`, or the first name that differs, with both shapes; values that are
            no numbers.
    """
    theirs = read_weights(path)
    mine: dict[str, Tensor] = model.state_dict()
    # Files of old torch versions lack this count, which no output depends on.
    theirs |= {k: v for k, v in mine.items() if k.endswith("num_batches_tracked") and k not in theirs}
    problems = [f"{k!r} {list(v.shape)} is not in the file" for k, v in mine.items() if k not in theirs]
    problems += [f"the file has {k!r} {list(v.shape)}, the network has not" for k, v in theirs.items() if k not in mine]
    shapes = [
        f"{k!r} is {list(theirs[k].shape)} in the file and {list(v.shape)} in the network"
        for k, v in mine.items()
        if k in theirs and theirs[k].shape != v.shape
    ]
    kinds = [
        f"{k!r} is {str(theirs[k].dtype).removeprefix('torch.')} in the file and a floating-point number in the network"
        for k, v in mine.items()
        if k in theirs and v.is_floating_point() and not theirs[k].is_floating_point()
    ]
    if found := problems + shapes + kinds:
        more = f" ({len(found) - 1} more differ)" if len(found) > 1 else ""
        raise ExperimentError(f"does not fit the network: {found[0]}{more}")
    for name, tensor in theirs.items():
        if tensor.is_floating_point() and tensor.isnan().any():
            raise ExperimentError(f"{name!r} holds values that are no numbers (NaN): its training diverged")
    model.load_state_dict(theirs)
