"""A GPU's matrix products without the shortcuts that torch allows them.

Owns torch's switches for this process. fp32 stays fp32: TF32 keeps 10 of 23 bits, which the
self-proof's bound would not let pass. Products in bf16 and fp16 add up in fp32 to the end: with
torch's default a product that is split along its sum rounds every part to 16 bits before the parts
are added, and whether it is split depends on the number of rows, so on who else is in the batch.
Called at start.
"""

from __future__ import annotations

import torch


def keep_products_exact() -> None:
    products = torch.backends.cuda.matmul
    products.allow_tf32 = False
    products.allow_bf16_reduced_precision_reduction = False
    products.allow_fp16_reduced_precision_reduction = False
