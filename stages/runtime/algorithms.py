"""Threads and algorithms of torch in a stage's process."""

import os

from rank_e.config import Params


def configure_torch(params: Params) -> None:
    """Fix the number of threads and the choice of algorithms, as `runtime.deterministic` has it.

    Deterministic: what CUDA can only do in an order of its own is an error, and products are float32 in full. Else
    cuDNN tries its algorithms out and takes the fastest; convolutions may round their float32 operands to TF32 (10
    bits). Matrix products never do: in float32 are those that are compared with others (a float32 policy's
    log-probabilities, resized pixels); what need not be exact is bfloat16 by name.
    """
    deterministic = params.runtime.deterministic
    os.environ["OMP_NUM_THREADS"] = str(params.runtime.threads)
    if deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # cuBLAS's condition
    import torch

    torch.set_num_threads(params.runtime.threads)
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # saves a pass
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.allow_tf32 = not deterministic
    torch.backends.cuda.matmul.allow_tf32 = False
