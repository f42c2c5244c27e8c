"""Which numbers of a flow may be of half precision: products inside transformers, and nothing else.

Norms, start tokens, heads, residuals, affine maps, sums of log-probabilities and all site networks stay float32: in
bfloat16 a latent of 2 is off by a tenth of the noise, and nats of such frames mean nothing.
"""

import torch
from torch import nn

from starflow_world.flow.block import Block
from starflow_world.flow.denoiser import Denoiser
from starflow_world.flow.model import Flow


def running_dtypes(flow: Flow, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The dtype of every tensor of a flow that is to run in `dtype` under autocast (see `Flow.products`)."""
    found = dict.fromkeys(flow.state_dict(), torch.promote_types(dtype, torch.float32))
    for room, module in flow.named_modules():
        for name, part in module.named_modules() if isinstance(module, Block | Denoiser) else ():
            if isinstance(part, nn.Linear) and name != "head":
                found |= {f"{room}.{name}.{parameter}": dtype for parameter, _ in part.named_parameters()}
    return found


def run_in(flow: Flow, dtype: torch.dtype) -> None:
    """Make the flow's products run in `dtype`: cast the weights that `running_dtypes` names."""
    kinds = running_dtypes(flow, dtype)
    tensors = {name: tensor.to(kinds[name]) for name, tensor in flow.state_dict().items()}
    flow.load_state_dict(tensors, strict=True, assign=True)
