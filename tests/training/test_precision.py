"""Products are made in the precision that is asked for, or in the one that the device is fast at."""

import pytest
import torch

from training.precision import products


def made_in(precision: str) -> torch.dtype:
    with products(precision, "cpu"):  # type: ignore[arg-type]
        return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


def test_a_precision_that_is_asked_for_is_used_whatever_the_device() -> None:
    assert made_in("fp32") == torch.float32
    assert made_in("bf16") == torch.bfloat16


@pytest.mark.parametrize(
    ("able", "dtype"),
    [({"avx512_bf16": True}, torch.bfloat16), ({"amx_bf16": True}, torch.bfloat16), ({"avx2": True}, torch.float32)],
)
def test_auto_is_half_precision_only_where_the_processor_has_instructions_for_it(
    able: dict[str, bool], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    assert made_in("auto") == dtype
