"""What a teacher's kept outputs depend on, as plain facts to be hashed."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from akd.data.loader import DeviceLoader
from akd.models.adapter import Adapter

_known: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def fingerprint(model: nn.Module) -> str:
    """Hash of a network: its parts, the code of their classes (other than torch's), every weight and its layout.

    Kept for as long as the network lives: a teacher is frozen.
    """
    if model not in _known:
        found = hashlib.sha256(str(model).encode())
        sources = set()
        for module in model.modules():
            if isinstance(module, Adapter):  # where its maps are read is no part of its text
                found.update(str((module.maps, module.embedding)).encode())
            if not type(module).__module__.startswith("torch."):
                sources.add(_source(type(module)))
        for text in sorted(sources):
            found.update(text.encode())
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.stride()}".encode())
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        _known[model] = found.hexdigest()[:16]
    return _known[model]


def _source(kind: type) -> str:
    """Hash of the file a class is written in; its name alone where there is none."""
    try:
        file = inspect.getsourcefile(kind)
        content = Path(file).read_bytes() if file else b""
    except (OSError, TypeError):
        content = b""
    return f"{kind.__qualname__} {hashlib.sha256(content).hexdigest()}"


def arithmetic(device: torch.device) -> dict[str, Any]:
    """What of a machine and its settings decides how a forward pass is rounded."""
    facts: dict[str, Any] = {"torch": torch.__version__}
    if device.type == "cuda":
        tf32 = [torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()]
        return facts | {"device": torch.cuda.get_device_name(device), "tf32": tf32}
    return facts | {"device": f"cpu {torch.backends.cpu.get_cpu_capability()}", "threads": torch.get_num_threads()}


def pictures(loader: DeviceLoader, candidate: int) -> dict[str, Any]:
    """What decides the images of a view, and for which rows they are made.

    Args:
        candidate: of the strong views; -1 for the standard one.
    """
    data = loader.data
    facts: dict[str, Any] = {
        "data": data.dataset.hash,
        "rows": hashlib.sha256(data.train.numpy().tobytes()).hexdigest()[:16],
        "view": repr(data.augment),
        "normalise": [data.dataset.mean, data.dataset.std],
        "images": str(loader.dtype),
        "plan_seed": loader.plan_seed,
        "candidate": candidate,
    }
    if candidate >= 0:
        assert loader.policy is not None
        facts["policy"] = loader.policy.pixels(loader.policy.config)
        if not type(loader.policy).__module__.startswith("akd."):
            facts["policy code"] = _source(type(loader.policy))
    return facts
