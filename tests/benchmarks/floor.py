"""What a step must cost at least: its operations over what the machine multiplies, its bytes over what it moves.

    .venv/bin/python tests/benchmarks/floor.py [--threads 1] [--device cpu] [--batch 64] [NETWORK ...]

A network's row is its forward pass, as a teacher makes it, and a step of plain training: operations (2 for each
multiplication and addition of convolutions and matrix products), bytes that operations which are not fused read and
write, and the least time both take. The arithmetic floor is operations alone at the rate of a large matrix product
or convolution, whichever is faster here. The second floor adds the traffic: of every operation the longer
of its arithmetic and its bytes at the rate of a copy in the cache it fits. Fusing goes below that one, nothing else.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from akd.models import seeded_model


@dataclass(frozen=True)
class Work:
    """Of one call.

    Attributes:
        operations: of convolutions and matrix products.
        bytes: read and written by all operations, none of them fused.
        parts: (operations, bytes) of each operation.
    """

    operations: float
    bytes: float
    parts: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Machine:
    """What a device does at best, as measured.

    Attributes:
        operations: per second, in a large matrix product or convolution.
        rates: (bytes of a working set, bytes per second of a copy of that size), from small to large.
    """

    operations: float
    rates: tuple[tuple[int, float], ...]

    def arithmetic(self, work: Work) -> float:
        """Seconds of the operations alone."""
        return work.operations / self.operations

    def traffic(self, work: Work) -> float:
        """Seconds if every operation reads and writes its tensors, which lie in the nearest memory that holds them."""
        return sum(max(operations / self.operations, size / self._rate(size)) for operations, size in work.parts)

    def _rate(self, size: float) -> float:
        return next((rate for limit, rate in self.rates if size <= limit), self.rates[-1][1])


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[tuple[float, float]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        returns = function._schema.returns
        if any(r.alias_info is not None and not r.alias_info.is_write for r in returns):
            return result  # a view
        operations = _operations(function._overloadpacket, args, kwargs, result)
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
        self.parts.append((operations, float(sum(t.numel() * t.element_size() for t in tensors))))
        return result


def _operations(packet: Any, args: Any, kwargs: Any, result: Any) -> float:
    """Of one call. Convolutions are counted here: torch's own count takes grouped ones' gradients for dense."""
    aten = torch.ops.aten
    if packet == aten.convolution:
        return 2.0 * result.numel() * args[1][0].numel()
    if packet == aten.convolution_backward:
        gradient, _, weight, *_, wanted = args
        return 2.0 * gradient.numel() * weight[0].numel() * sum(wanted[:2])
    return float(flop_registry[packet](*args, **kwargs, out_val=result)) if packet in flop_registry else 0.0


def work(call: Callable[[], object]) -> Work:
    """Operations and bytes of one call."""
    with _Counter() as counter:
        call()
    return Work(sum(o for o, _ in counter.parts), sum(b for _, b in counter.parts), tuple(counter.parts))


def shortest(call: Callable[[], object], device: torch.device, rounds: int = 7) -> float:
    """Seconds of the fastest of several calls, after one that warms up: what a device can do."""
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return min(times[1:])


@torch.no_grad()
def machine(device: torch.device, dtype: torch.dtype = torch.float32) -> Machine:
    """Measure a device with the threads that are set; a second on a CPU."""
    side, batch = (8192, 512) if device.type == "cuda" else (1536, 32)
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    maps = torch.randn(batch, 256, 16, 16, device=device).to(dtype, memory_format=torch.channels_last)
    kernel = torch.randn(256, 256, 3, 3, device=device).to(dtype, memory_format=torch.channels_last)
    operations = max(
        2 * side**3 / shortest(lambda: torch.mm(a, b), device),
        2 * maps.numel() * kernel[0].numel() / shortest(lambda: F.conv2d(maps, kernel, padding=1), device),
    )
    rates = []
    for size in (1 << 19, 1 << 22, 1 << 25, 1 << 28):  # caches of a core, of all cores, memory
        source = torch.zeros(size // 8, device=device)
        target, repeat = torch.empty_like(source), max(1, (1 << 25) // size)

        def copy(source: Tensor = source, target: Tensor = target, repeat: int = repeat) -> None:
            for _ in range(repeat):
                target.copy_(source)

        rates.append((size, size * repeat / shortest(copy, device)))
    return Machine(operations, tuple(rates))


def forward(net: nn.Module, images: Tensor) -> Work:
    """Of a teacher's pass."""
    net.eval()
    with torch.no_grad():
        return work(lambda: net(images))


def training(net: nn.Module, images: Tensor, labels: Tensor) -> Work:
    """Of a step of plain training: forward and backward pass, and SGD with momentum."""
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-6, momentum=0.9, nesterov=True, foreach=False)

    def step() -> None:
        F.cross_entropy(net(images).logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()  # the first makes the momentum
    return work(step)


def line(name: str, found: Work, on: Machine) -> str:
    """A row of the table."""
    return (
        f"{name:<28} {found.operations / 1e9:8.2f} {found.bytes / 1e6:9.1f} "
        f"{1000 * on.arithmetic(found):9.1f} ms {1000 * on.traffic(found):9.1f} ms"
    )


HEAD = f"{'':<28} {'GFLOP':>8} {'MB':>9} {'arithmetic':>12} {'+ traffic':>12}"


def describe(on: Machine, device: torch.device) -> str:
    """The machine in a line."""
    rates = ", ".join(f"{rate / 1e9:.0f} GB/s up to {size / 1e6:.1f} MB" for size, rate in on.rates)
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return f"{device}{threads}: {on.operations / 1e9:.0f} GFLOP/s in a large product or convolution; copies {rates}"


def main() -> None:
    """Print the floors of networks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    pairs = ["resnet32x4", "resnet8x4", "wrn_40_2", "wrn_16_2", "ResNet50", "MobileNetV2"]
    parser.add_argument("networks", nargs="*", default=pairs)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    on = machine(device)
    print(describe(on, device))
    print(HEAD)
    images = torch.randn(args.batch, 3, 32, 32, device=device)
    labels = torch.randint(100, (args.batch,), device=device)
    for name in args.networks:
        net = seeded_model(name, 100, 0).to(device)
        print(line(f"{name}, forward", forward(net, images), on), flush=True)
        print(line(f"{name}, training", training(net, images, labels), on), flush=True)


if __name__ == "__main__":
    main()
