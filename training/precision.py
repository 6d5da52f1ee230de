"""In which precision matrix products are made; weights, moments and averages are fp32 always."""

import torch

from training.config import Precision

CPU_BF16 = ("avx512_bf16", "amx_bf16", "bf16")  # instructions for it, by their names on x86 and Arm


def products(precision: Precision, device: torch.device | str) -> torch.autocast:
    """Return the context in which a model runs on a device.

    `auto` is bf16 where the device has instructions for it, else fp32: a CPU without them makes bf16 products some thirty
    times slower than fp32 ones.
    """
    device = torch.device(device)
    half = precision == "bf16" or (precision == "auto" and has_bf16(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=half)


def has_bf16(device: torch.device | str) -> bool:
    """Tell whether a device has instructions for bf16."""
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # an older torch does not tell
    return any(able.get(name, False) for name in CPU_BF16)
