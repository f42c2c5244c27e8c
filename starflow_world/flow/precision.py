"""Half precision of a flow, which is limited to matrix products inside transformers.

Norms, start tokens, heads, residuals, affine maps, sums of log-probabilities and all site networks stay float32: the
bfloat16 rounding error of a latent of size 2 is a tenth of the noise, which makes its log-likelihood meaningless.
"""

import torch
from torch import nn

from starflow_world.flow.block import Block
from starflow_world.flow.denoiser import Denoiser
from starflow_world.flow.model import Flow


def running_dtypes(flow: Flow, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """Return the dtype of every weight, by name, of a flow whose matrix products run in `dtype` under autocast."""
    dtypes = dict.fromkeys(flow.state_dict(), torch.promote_types(dtype, torch.float32))
    for path, module in flow.named_modules():
        for name, part in module.named_modules() if isinstance(module, Block | Denoiser) else ():
            if isinstance(part, nn.Linear) and name.partition(".")[0] != "head":
                dtypes |= {f"{path}.{name}.{parameter}": dtype for parameter, _ in part.named_parameters()}
    return dtypes


def run_in(flow: Flow, dtype: torch.dtype) -> None:
    """Cast the weights of the flow in place so that its matrix products run in `dtype`."""
    dtypes = running_dtypes(flow, dtype)
    tensors = {name: tensor.to(dtypes[name]) for name, tensor in flow.state_dict().items()}
    flow.load_state_dict(tensors, strict=True, assign=True)
