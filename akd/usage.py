"""How the files of an export are used, as code that runs as it stands in the folder that holds them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from akd.programs import INPUT, OUTPUT


def torch_script(config: Mapping[str, Any]) -> str:
    """Ten lines of plain torch that name the class of the examples, or of a picture."""
    channels, (height, width) = config["in_channels"], config["image_size"]
    mode, order = ("L", "[None, None]") if channels == 1 else ("RGB", ".permute(2, 0, 1)[None]")
    picture = [
        "if sys.argv[1:]:  # a picture of your own instead",
        f'    picture = ImageOps.fit(Image.open(sys.argv[1]).convert("{mode}"), ({width}, {height}))',
        f"    images = torch.tensor(numpy.array(picture) / 255, dtype=torch.float32){order}",
    ]
    lines = [
        "import json, sys",
        "import numpy, torch",
        *(["from PIL import Image, ImageOps"] if channels in (1, 3) else []),
        "",
        'classes = json.load(open("config.json"))["classes"]',
        'program = torch.export.load("student.pt2").module()',
        'images = torch.from_numpy(numpy.load("example.npz")["images"])',
        *(picture if channels in (1, 3) else []),
        "print([classes[k] for k in program(images).argmax(1)])",
    ]
    return "\n".join(lines)


def ways(config: Mapping[str, Any], files: Iterable[str], example: str) -> list[str]:
    """A section of Markdown: a block of code for each file that can be used by itself.

    Args:
        config: ``config.json`` of the student.
        files: names of what is beside the card.
        example: what ``example.npz`` holds, in words; empty if it is not there.
    """
    lines = ["## How to use it", ""]
    if "student.pt2" in files:
        lines += [
            "With torch alone, in this folder (`python use.py`, or `python use.py PICTURE`):",
            "",
            f"```python\n{torch_script(config)}\n```",
            "",
            "`torch.export.load` unpickles parts of the file, which can run code: load a `.pt2` only if you trust who "
            "gave it to you. `student.safetensors` and `student.onnx` hold no code.",
            "",
        ]
    if "student.onnx" in files:
        lines += [
            "With onnxruntime:",
            "",
            "```python",
            "import numpy, onnxruntime",
            'session = onnxruntime.InferenceSession("student.onnx")',
            f'(logits,) = session.run(["{OUTPUT}"], {{"{INPUT}": numpy.load("example.npz")["images"]}})',
            "print(logits.argmax(1))",
            "```",
            "",
        ]
    if "student.safetensors" in files:
        lines += [
            "With akd, as a network to go on with:",
            "",
            "```python",
            "import json, torch, akd",
            'own = json.load(open("config.json"))',
            'mean, std = (torch.tensor(own["normalise"][k]).view(-1, 1, 1) for k in ("mean", "std"))',
            'student = akd.load_student(".")',
            'pixels = torch.rand(4, own["in_channels"], *own["image_size"])  # of 0..1',
            "print(student((pixels - mean) / std).logits.argmax(1))",
            "```",
            "",
        ]
    if example:
        lines += [f"`example.npz` holds `images` ({example}) and the `logits` that torch gives for them.", ""]
    return lines
