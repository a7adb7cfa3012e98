"""What this machine's processor computes fast: `cpu_has_bf16()`."""

import torch

NO_BF16 = "this CPU has no AVX512-BF16 and no AMX"


def cpu_has_bf16() -> bool:
    """Return whether the CPU has instructions for bfloat16 products.

    With them a product takes half as long as in float32. Without them PyTorch computes it all the
    same, but slower than in float32.
    """
    capabilities = torch.cpu.get_capabilities()
    return capabilities.get("avx512_bf16", False) or capabilities.get("amx_bf16", False)
