"""Any network as one that gives an :class:`Output`: its logits, what its classifier reads, and its stage ends.

The taps are found by one pass of a made-up image, or named by the user:

- embedding: the input of the last linear layer that is as wide as the logits; without one, the last map's mean;
- maps: for each resolution the last feature map before the drop, watched at the inputs and outputs of modules. Of
  several modules the outermost counts (``layer2``, not a convolution within), and an input is preferred to the
  output before it, because it has passed a ReLU that is a function and no module. Where the classifier proves that
  the last map still goes through such a ReLU, the adapter applies it.

A state dict is that of the network itself, so that its checkpoints and the students handed over carry its own names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from akd.errors import ExperimentError, near
from akd.models.output import Output


@dataclass(frozen=True)
class Tap:
    """Where a map is read: the input or output of a module's nth call, through a ReLU or not."""

    module: str
    before: bool = False
    call: int = 0
    relu: bool = False


@dataclass(frozen=True)
class _Seen:
    """One feature map that passed a module during the search for taps."""

    tap: Tap
    depth: int
    value: Tensor


@dataclass
class _Probe:
    """What one pass of an image showed, in order of time."""

    maps: list[_Seen]
    read: list[tuple[str, nn.Linear, Tensor]]
    pooled: set[int]


def logits_of(result: Any) -> Tensor:
    """The logits [B, C] in what a network's ``forward`` returns: a tensor, ``.logits``, ``["logits"]`` or the first."""
    found = result
    if isinstance(result, Mapping):
        found = result.get("logits")
    elif hasattr(result, "logits"):
        found = result.logits
    elif isinstance(result, (tuple, list)) and result:
        found = result[0]
    if not isinstance(found, Tensor) or found.ndim != 2:
        shape = f" of shape {list(found.shape)}" if isinstance(found, Tensor) else ""
        raise ExperimentError(f"gives a {type(found).__name__}{shape} where logits [images, classes] are needed")
    return found


class Adapter(nn.Module):
    """A network whose ``forward`` gives an :class:`Output`.

    Args:
        net: any module that takes images and gives logits.
        maps: where the maps are read, shallow to deep.
        embedding: the module whose input is the embedding; ``None`` takes the mean of the last map.
    """

    def __init__(self, net: nn.Module, maps: Sequence[Tap], embedding: str | None):
        super().__init__()
        self.net, self.maps, self.embedding = net, tuple(maps), embedding

    def forward(self, x: Tensor, preact: bool = False) -> Output:
        if preact:
            raise ExperimentError(
                "gives no maps before the ReLU; a method that reads them needs a network that returns an "
                "akd.models.Output itself, as akd's own do"
            )
        # Hooks live for one call: a copy of the network (for averaged weights) has none that point to the original.
        caught: dict[tuple[str, bool], list[Any]] = {(t.module, t.before): [] for t in self.maps}
        if self.embedding:
            caught[self.embedding, True] = []
        handles = [_catch(self.net.get_submodule(name), before, values) for (name, before), values in caught.items()]
        try:
            logits = logits_of(self.net(x))
        finally:
            for handle in handles:
                handle.remove()
        maps = tuple(F.relu(v) if t.relu else v for t in self.maps for v in (caught[t.module, t.before][t.call],))
        embedding = caught[self.embedding, True][-1] if self.embedding else maps[-1].mean((2, 3))
        return Output(logits, embedding, maps)

    def state_dict(self, *args: Any, **kw: Any) -> Any:
        return self.net.state_dict(*args, **kw)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kw: Any) -> Any:
        return self.net.load_state_dict(state_dict, *args, **kw)


def _catch(module: nn.Module, before: bool, values: list[Any]) -> Any:
    """Append every input or output of a module to ``values``."""
    if before:
        return module.register_forward_pre_hook(lambda _, args: values.append(args[0] if args else None))
    return module.register_forward_hook(lambda _, args, out: values.append(out))


def adapt(
    net: nn.Module, num_classes: int, in_channels: int, image_size: tuple[int, int], taps: Sequence[str] = ()
) -> nn.Module:
    """``net`` itself if it gives an :class:`Output` already, else an :class:`Adapter` around it.

    Args:
        num_classes, in_channels, image_size: what the data has; the network must fit it.
        taps: modules whose outputs are the maps; empty finds them.

    Raises:
        ExperimentError: the network refuses the images, gives other classes, or a tap is not there.
    """
    image = torch.randn(1, in_channels, *image_size, generator=torch.Generator().manual_seed(0))
    training, probe = net.training, _Probe([], [], set())
    handles = [h for name, module in net.named_modules() if name for h in _spy(name, module, probe)]
    try:
        with torch.no_grad():
            result = net.eval()(image)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        size = "x".join(str(v) for v in (in_channels, *image_size))
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ExperimentError(f"does not take images of {size}: {reason}") from None
    finally:
        for handle in handles:
            handle.remove()
        net.train(training)
    logits = result.logits if isinstance(result, Output) else logits_of(result)
    if logits.shape[1] != num_classes:
        raise ExperimentError(f"gives {logits.shape[1]} classes, the data has {num_classes}")
    if isinstance(result, Output):
        if taps:
            raise ExperimentError("gives its maps itself; taps have no effect on it")
        return net
    reads = [(name, x) for name, layer, x in probe.read if layer.out_features == num_classes and x.ndim == 2]
    name, embedding = reads[-1] if reads else (None, None)
    maps = [_named(net, probe, tap) for tap in taps] if taps else _stage_ends(probe, embedding)
    if name is None and not maps:
        raise ExperimentError("has neither a linear classifier nor feature maps that could be read")
    return Adapter(net, maps, name)


def _spy(name: str, module: nn.Module, probe: _Probe) -> tuple[Any, Any]:
    """Hooks that note what passes a module; nothing is a feature map before the first layer with weights."""
    calls = {True: 0, False: 0}
    weighted = next(module.parameters(recurse=False), None) is not None

    def note(value: Any, before: bool) -> None:
        tap = Tap(name, before, calls[before])
        calls[before] += 1
        if isinstance(value, Tensor) and value.ndim == 4 and (probe.maps or (weighted and not before)):
            probe.maps.append(_Seen(tap, name.count("."), value))
            if not before and "Pool" in type(module).__name__ and value.shape[2] * value.shape[3] == 1:
                probe.pooled.add(id(value))

    def enter(_: nn.Module, args: tuple[Any, ...]) -> None:
        value = args[0] if args else None
        note(value, True)
        if isinstance(module, nn.Linear) and isinstance(value, Tensor):
            probe.read.append((name, module, value))

    return module.register_forward_pre_hook(enter), module.register_forward_hook(lambda _, args, out: note(out, False))


def _named(net: nn.Module, probe: _Probe, name: str) -> Tap:
    modules = [n for n, _ in net.named_modules() if n]
    if name not in modules:
        raise ExperimentError(f"has no module {name!r} to tap{near(name, modules)}")
    found = [s.tap for s in probe.maps if s.tap.module == name and not s.tap.before]
    if not found:
        raise ExperimentError(f"has a module {name!r}, but it gives no feature map [B, C, H, W]")
    return found[-1]


def _stage_ends(probe: _Probe, embedding: Tensor | None) -> list[Tap]:
    """The last map of each resolution, of the outermost modules; see the module's text."""
    chosen: dict[int, tuple[int, _Seen]] = {}
    for time, s in enumerate(probe.maps):
        if id(s.value) in probe.pooled:  # the end of the last stage, not a stage
            continue
        area = s.value.shape[2] * s.value.shape[3]
        if area not in chosen or s.depth <= chosen[area][1].depth:
            chosen[area] = time, s
    found: list[tuple[int, _Seen]] = []
    for area in sorted(chosen, reverse=True):
        # A small map in between (squeeze and excitation) comes before a larger one that ends a stage.
        if not found or chosen[area][0] > found[-1][0]:
            found.append(chosen[area])
    taps = [s.tap for _, s in found]
    if taps and embedding is not None and _through_relu(found[-1][1].value, embedding):
        taps[-1] = replace(taps[-1], relu=True)
    return taps


def _through_relu(last: Tensor, embedding: Tensor) -> bool:
    """True if the embedding is an average pooling of the last map after a ReLU, and not of the map as it is."""
    channels, width = last.shape[1], embedding.shape[1]
    side = round((width / channels) ** 0.5)
    if side < 1 or channels * side * side != width or min(last.shape[2:]) < side:
        return False

    def pooled(x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, side).flatten(1)

    plain = torch.allclose(pooled(last), embedding, rtol=1e-4, atol=1e-5)
    return not plain and torch.allclose(pooled(F.relu(last)), embedding, rtol=1e-4, atol=1e-5)
