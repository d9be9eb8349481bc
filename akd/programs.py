"""A student as programs that run without akd: torch.export and ONNX; how far they are from it, and how fast.

Both take images [N, C, H, W] of 0..1 for any N >= 1 and give logits. Nothing here opens a program that was not made
here: torch.export's files hold pickles, which can run code.
"""

from __future__ import annotations

import contextlib
import logging
import re
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from akd.errors import AkdError, one_line

#: What the input and the output are called in both programs.
INPUT, OUTPUT = "images_0_to_1", "logits"
#: Format -> file.
FILES = {"safetensors": "student.safetensors", "torch": "student.pt2", "onnx": "student.onnx"}
#: What the ONNX format needs, and how to get it.
_ONNX, EXTRA = ("onnx", "onnxscript", "onnxruntime"), "pip install 'akd[onnx]'"
#: Largest difference of logits of up to 1, in proportion beyond: rounding in float32 adds up layer by layer.
TOLERANCE = 1e-4

Run = Callable[[Tensor], Tensor]


class ProgramError(AkdError):
    """A network cannot be written in a format; the message says which operator or line is in the way."""


def missing() -> list[str]:
    """Libraries of the ONNX format that are not installed."""
    return [name for name in _ONNX if find_spec(name) is None]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporters print graphs and warn of their own insides; what fails raises."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)


def trace(net: nn.Module, image: Tensor) -> torch.export.ExportedProgram:
    """The program of a network in eval mode, for any number of images.

    Args:
        image: [1, C, H, W], whose size is the only one the program takes.

    Raises:
        ProgramError: the network decides by values of its input, or is made for one number of images.
    """
    # Two: torch takes a dimension of 1 for one that is always 1.
    images = torch.zeros(2, *image.shape[1:], dtype=torch.float32)
    shapes = {INPUT: {0: torch.export.Dim("batch", min=1)}}
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(net, (images,), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # whatever stands in a user's forward
        raise ProgramError(_why(error)) from error
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # names folders of this machine
    return program


def save_torch(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write a program as ``.pt2``.

    Raises:
        ProgramError: torch cannot.
    """
    try:
        with _quiet():
            torch.export.save(program, path)
    except OSError:
        raise
    except Exception as error:
        raise ProgramError(_why(error)) from error


def save_onnx(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write a program as one ONNX file, weights inside.

    Raises:
        ProgramError: an operator has no ONNX form, or the weights are more than the 2 GB such a file holds.
    """
    try:
        with _quiet():
            made = torch.onnx.export(
                program,
                dynamic_shapes={INPUT: {0: "batch"}},
                input_names=[INPUT],
                output_names=[OUTPUT],
                external_data=False,
                verbose=False,
            )
            assert made is not None
            made.save(path, external_data=False)
    except OSError:
        raise
    except Exception as error:
        raise ProgramError(_why(error)) from error


def _why(error: BaseException) -> str:
    """An exporter's exception in one line; the operator, if one is named somewhere in the chain."""
    chain: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in chain:
        chain.append(at)
        at = at.__cause__ or at.__context__
    for link in chain:
        if found := re.search(r"No ONNX function found for .*?op='([\w.:]+)'", str(link)):
            return f"the operator {found[1]} has no ONNX form"
    text = re.sub(r"\x1b\[\d+m", "", str(error)).strip()
    first = text.splitlines()[0] if text else type(error).__name__
    if constant := re.search(r"your code specialized it to be a constant \((\d+)\)", text):
        return f"the network is made for batches of {constant[1]} images and no others"
    if place := re.search(r"Caused by: \((.*?)\)", text):
        first = f"{first.partition(' (unhinted')[0].rstrip('.')}, {place[1]}"
    return one_line(first)[:300]


def open_torch(path: Path) -> Run:
    """A ``.pt2`` that was just made, as a function of images; never one from outside, see the module's text."""
    with _quiet():
        module = torch.export.load(path).module()
    return lambda images: module(images)


def open_onnx(path: Path) -> Run:
    """An ONNX file as a function of images, run by onnxruntime on the CPU with as many threads as torch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])

    return run


#: Format -> its name in words, and what writes and what opens it.
PROGRAMS: Mapping[str, tuple[str, Callable[[torch.export.ExportedProgram, Path], None], Callable[[Path], Run]]] = {
    "torch": ("torch.export", save_torch, open_torch),
    "onnx": ("ONNX", save_onnx, open_onnx),
}


@dataclass(frozen=True)
class Parity:
    """How far a program's logits are from the student's on one batch.

    Attributes:
        program: in words.
        batch: images.
        difference: largest absolute one of all logits.
        tolerance: what it may be.
        agreeing: images with the same first class.
    """

    program: str
    batch: int
    difference: float
    tolerance: float
    agreeing: int

    @property
    def good(self) -> bool:
        """False for NaN too."""
        return self.difference <= self.tolerance


def parity(name: str, run: Run, reference: Run, images: Tensor, batches: Sequence[int]) -> list[Parity]:
    """A program beside the network it was made of.

    Args:
        images: [n, C, H, W] of 0..1; batches are taken from it one after the other, and again from its beginning.
        batches: numbers of images.
    """
    rows, found, at = len(images), [], 0
    for batch in batches:
        some = images[torch.arange(at, at + batch) % rows]
        at += batch
        with torch.no_grad():
            wanted = reference(some)
            try:
                got = run(some)
            except Exception as error:  # a program that does not run is no program
                raise ProgramError(f"does not run on {batch} images: {_why(error)}") from error
        if got.shape != wanted.shape:
            raise ProgramError(f"gives {list(got.shape)} for {batch} images, not {list(wanted.shape)}")
        most = float((got.double() - wanted.double()).abs().max())
        tolerance = TOLERANCE * max(1.0, float(wanted.abs().max()))
        found.append(Parity(name, batch, most, tolerance, int((got.argmax(1) == wanted.argmax(1)).sum())))
    return found


def latencies(
    runs: Mapping[str, Run], images: Mapping[int, Tensor], seconds: float = 2.0
) -> dict[tuple[str, int], float]:
    """Median seconds of each program and batch; programs take turns, so that a slow moment meets them all.

    Args:
        images: number of images -> batch.
        seconds: of measuring for each batch, about; at least five rounds and at most two hundred.
    """
    found: dict[tuple[str, int], float] = {}
    for batch, some in images.items():
        times: dict[str, list[float]] = {name: [] for name in runs}
        with torch.inference_mode():
            for run in runs.values():  # first calls plan and allocate
                run(some)
            began = time.perf_counter()
            for turn in range(200):
                if turn >= 5 and time.perf_counter() - began > seconds:
                    break
                for name, run in runs.items():
                    start = time.perf_counter()
                    run(some)
                    times[name].append(time.perf_counter() - start)
        found |= {(name, batch): statistics.median(values) for name, values in times.items()}
    return found


def operations(net: nn.Module, image: Tensor) -> int:
    """Floating-point operations of one image's forward pass, a multiplication and an addition each one."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(image)
    return int(counter.get_total_flops())


def hardware() -> str:
    """``AMD EPYC 7B13, 2 threads``: what latencies were measured on."""
    model: Any = None
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    import platform

    name = model[1].strip() if model else platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' * (threads != 1)}"
