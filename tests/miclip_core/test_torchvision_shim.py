"""torchvision can be imported beside the installed torch, in a fresh process and twice."""

import subprocess
import sys

PROGRAM = """
from miclip_core.torchvision_shim import ensure_torchvision
ensure_torchvision()
ensure_torchvision()
import open_clip, timm, torch
from torchvision.transforms import functional
image = torch.arange(3 * 4 * 4, dtype=torch.uint8).reshape(3, 4, 4)
print(functional.hflip(image)[0, 0].tolist(), functional.resize(image, [2, 2], antialias=True).shape[-1])
"""


def test_a_fresh_process_imports_open_clip_and_timm_and_can_transform_images():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300)
    assert done.stdout.split("\n")[0] == "[3, 2, 1, 0] 2", done.stderr
