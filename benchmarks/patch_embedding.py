"""The patch embedding of Qwen3-VL as a matrix product against its Conv3d: `python -m benchmarks.patch_embedding`.

Prints ratios of two paths in one run, for the forward of 2,048 patches (a clip of 2 cells of 512 x 512 pixels) in either type.
"""

import copy
import statistics
import time

import torch
from transformers import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionPatchEmbed

from trl_perception.modeling import project_patches


def seconds(embed, patches) -> float:
    start = time.perf_counter()
    embed(patches)
    return time.perf_counter() - start


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    convolution = Qwen3VLVisionPatchEmbed(Qwen3VLVisionConfig())
    size = convolution.proj
    patches = torch.randn(2048, size.in_channels * torch.Size(size.kernel_size).numel())
    for dtype in (torch.float32, torch.bfloat16):
        slow = convolution.to(dtype)
        fast = copy.deepcopy(slow)
        project_patches(fast)
        given = patches.to(dtype)
        difference = (slow(given).float() - fast(given).float()).abs().max() / slow(given).float().abs().max()
        ratio = statistics.median(seconds(slow, given) / seconds(fast, given) for _ in range(5))
        print(
            f"{str(dtype).removeprefix('torch.')}: {ratio:.0f} times as fast, outputs differ by {difference:.0e} of the largest"
        )


if __name__ == "__main__":
    main()
