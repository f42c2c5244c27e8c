"""Distributed training under torchrun: each process holds a share of every batch and a shard of the weights.

FSDP2 shards a module in place (its parameters become DTensors): matrices inside layers are gathered layer by layer, all
other parameters at once. Gradients are averaged over processes in float32. Each process draws the random numbers of the
whole batch and uses its own share, so the result does not depend on the number of processes.
"""

import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from starflow_world.errors import ConfigError
from starflow_world.flow.layers import Layer

T = TypeVar("T")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Processes:
    """Rank and device of this process, number of processes, and device mesh; without a mesh nothing is sharded."""

    rank: int = 0
    count: int = 1
    device: torch.device = CPU
    mesh: DeviceMesh | None = None

    @property
    def main(self) -> bool:
        """Return whether this is the process that writes and prints."""
        return self.rank == 0

    def part(self, rows: int) -> slice:
        """Return this process's slice of a batch of `rows`. Raises ConfigError if `rows` is not divisible."""
        if rows % self.count:
            raise ConfigError(f"batch: expected rows that {self.count} processes can share evenly, found {rows}")
        return slice(self.rank * rows // self.count, (self.rank + 1) * rows // self.count)

    def mean(self, numbers: Tensor) -> Tensor:
        """Return the elementwise mean of a tensor over all processes, detached."""
        if self.mesh is None:
            return numbers.detach()
        total = numbers.detach().clone()
        dist.all_reduce(total)
        return total / self.count

    def means(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Return the mean of each named figure over all processes."""
        means = self.mean(torch.tensor(list(figures.values()), dtype=torch.float64))
        return dict(zip(figures, means.tolist(), strict=True))

    def first(self, numbers: Tensor) -> Tensor:
        """Broadcast the tensor of process 0 and return it on all processes."""
        if self.mesh is not None:
            dist.broadcast(numbers := numbers.clone(), 0)
        return numbers

    def any(self, here: bool) -> bool:
        """Return whether `here` is true on any process."""
        return bool(self.mean(torch.tensor(float(here))))

    def in_turn(self, work: Callable[[], T]) -> T:
        """Return work(), called first on the main process and then on the other processes."""
        if self.main:
            done = work()
        self.wait()
        return done if self.main else work()

    def once(self, work: Callable[[], object]) -> None:
        """Call work() on the main process only; the other processes wait until it has finished."""
        if self.main:
            work()
        self.wait()

    def wait(self) -> None:
        """Wait until all processes have called this method (a barrier)."""
        if self.mesh is not None:
            dist.barrier()


ALONE = Processes()


@contextmanager
def torchrun_processes(environment: Mapping[str, str]) -> Iterator[Processes]:
    """Yield the process group that torchrun describes in `environment` (NCCL between GPUs, gloo between CPUs). Without
    torchrun's variables, yield a single process."""
    if "WORLD_SIZE" not in environment:
        yield ALONE
        return
    device = CPU
    if torch.cuda.is_available():
        device = torch.device("cuda", int(environment["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        count = dist.get_world_size()
        with warnings.catch_warnings():  # FSDP warns of in-place writes to views; there are none
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
            yield Processes(dist.get_rank(), count, device, init_device_mesh(device.type, (count,)))
    finally:
        dist.destroy_process_group()


def shard_module(root: nn.Module, processes: Processes, precision: str, methods: Sequence[str] = ()) -> None:
    """Shard a module over the processes; `methods` names its entry points besides `forward`. With `precision` bf16 the
    matrices inside layers are gathered in bfloat16, the dtype in which autocast multiplies them; norms, heads and all
    parameters outside layers stay float32, as in `flow.precision`. Does nothing for a single process."""
    if processes.mesh is None or not any(True for _ in root.parameters()):
        return
    kind = torch.bfloat16 if precision == "bf16" else None
    products = MixedPrecisionPolicy(param_dtype=kind, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in transformer_layers(root):
        matrices: list[nn.Module] = [module for module in layer.modules() if isinstance(module, nn.Linear)]
        fully_shard(matrices, mesh=processes.mesh, mp_policy=products)
    fully_shard(root, mesh=processes.mesh, mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.float32))
    for method in methods:
        register_fsdp_forward_method(root, method)


def transformer_layers(root: nn.Module) -> list[Layer]:
    """Return the transformer layers inside a module."""
    return [module for module in root.modules() if isinstance(module, Layer)]


def checkpoint_activations(root: nn.Module) -> None:
    """Enable activation checkpointing of transformer layers: the backward pass recomputes their activations."""
    for layer in transformer_layers(root):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)  # type: ignore[method-assign]


def fill_module(module: nn.Module, read: Callable[[str], Tensor]) -> None:
    """Copy read(name) into each tensor of a module, one at a time; each process keeps only its shards."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            value = read(name).to(tensor.device, tensor.dtype)
            if isinstance(tensor, DTensor):
                value = distribute_tensor(value, tensor.device_mesh, tensor.placements, src_data_rank=None)
            tensor.copy_(value)


def reshard(root: nn.Module) -> None:
    """Free the gathered weights of sharded modules, which a forward pass without backward pass leaves in place."""
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the full tensor of a tensor that may be sharded; all processes must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def clip_gradients(parameters: Sequence[nn.Parameter], most: float) -> Tensor:
    """Clip the joint norm of the parameters' gradients to at most `most`; return the norm before clipping."""
    norm = full_tensor(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    nn.utils.clip_grads_with_norm_(parameters, most, norm)
    return norm


@contextmanager
def interruptions(processes: Processes) -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether any process has received SIGINT or SIGTERM; all processes must call it
    together. A second signal of the same kind has its usual effect."""
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, before[signal.Signals(number)])

    for number in numbers:
        signal.signal(number, receive)
    try:
        yield lambda: processes.any(bool(received))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
