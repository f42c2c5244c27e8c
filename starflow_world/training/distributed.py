"""Processes that train one model together, as torchrun starts them: each has a part of every batch and of the weights.

FSDP2 shards a module in place (its parameters become DTensors): the matrices inside its layers are gathered layer by
layer, all else at once. Gradients are means over the processes, reduced in float32. Whatever is drawn is drawn for the
whole batch on every process, which then takes its own rows: many processes see what one would.
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
    """Which process this is, of how many, and where it computes. Without a `mesh` it is alone: nothing is sharded."""

    rank: int = 0
    count: int = 1
    device: torch.device = CPU
    mesh: DeviceMesh | None = None

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def part(self, rows: int) -> slice:
        """This process's rows of a batch of `rows` rows; all processes have as many. Raises ConfigError."""
        if rows % self.count:
            raise ConfigError(f"batch: expected rows that {self.count} processes can share evenly, found {rows}")
        return slice(self.rank * rows // self.count, (self.rank + 1) * rows // self.count)

    def mean(self, numbers: Tensor) -> Tensor:
        """The mean over all processes, without a gradient."""
        if self.mesh is None:
            return numbers.detach()
        total = numbers.detach().clone()
        dist.all_reduce(total)
        return total / self.count

    def means(self, figures: Mapping[str, float]) -> dict[str, float]:
        """The mean of every figure over all processes."""
        means = self.mean(torch.tensor(list(figures.values()), dtype=torch.float64))
        return dict(zip(figures, means.tolist(), strict=True))

    def first(self, numbers: Tensor) -> Tensor:
        """What the first process has, on all."""
        if self.mesh is None:
            return numbers
        found = numbers.clone()
        dist.broadcast(found, 0)
        return found

    def any(self, here: bool) -> bool:
        """Whether it is so on any process."""
        return bool(self.mean(torch.tensor(float(here))))

    def in_turn(self, work: Callable[[], T]) -> T:
        """work(): first on the main process, and when it is done there on all others."""
        if self.main:
            done = work()
        self.wait()
        return done if self.main else work()

    def once(self, work: Callable[[], object]) -> None:
        """work() on the main process; it is done when the others go on."""
        if self.main:
            work()
        self.wait()

    def wait(self) -> None:
        """Until all processes are here."""
        if self.mesh is not None:
            dist.barrier()


ALONE = Processes()


@contextmanager
def joined(environment: Mapping[str, str]) -> Iterator[Processes]:
    """The processes that torchrun started, as its variables in `environment` say (NCCL between GPUs, gloo between
    CPUs); without them this process, alone."""
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
        with warnings.catch_warnings():  # FSDP warns of views that someone may write to; nobody here does
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
            yield Processes(dist.get_rank(), count, device, init_device_mesh(device.type, (count,)))
    finally:
        dist.destroy_process_group()


def shard(root: nn.Module, processes: Processes, precision: str, methods: Sequence[str] = ()) -> None:
    """Shard a module over the processes: `methods` are those that are called on it besides `forward`.

    With `precision` bf16 the matrices inside layers are gathered in bfloat16, as autocast multiplies them; norms,
    heads and all that is no layer stay float32, as in `flow.precision`. All stay where they are if alone.
    """
    if processes.mesh is None or not any(True for _ in root.parameters()):
        return
    kind = torch.bfloat16 if precision == "bf16" else None
    products = MixedPrecisionPolicy(param_dtype=kind, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in layers(root):
        matrices: list[nn.Module] = [module for module in layer.modules() if isinstance(module, nn.Linear)]
        fully_shard(matrices, mesh=processes.mesh, mp_policy=products)
    fully_shard(root, mesh=processes.mesh, mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.float32))
    for method in methods:
        register_fsdp_forward_method(root, method)


def layers(root: nn.Module) -> list[Layer]:
    """The transformer layers of a module."""
    return [module for module in root.modules() if isinstance(module, Layer)]


def recompute(root: nn.Module) -> None:
    """Activation checkpointing: what is inside a layer is not kept for the backward pass but computed again there."""
    for layer in layers(root):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)  # type: ignore[method-assign]


def fill(module: nn.Module, read: Callable[[str], Tensor]) -> None:
    """Give a module, sharded or not, the tensors `read(name)`, one at a time; every process takes its part."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            value = read(name).to(tensor.device, tensor.dtype)
            if isinstance(tensor, DTensor):
                value = distribute_tensor(value, tensor.device_mesh, tensor.placements, src_data_rank=None)
            tensor.copy_(value)


def settle(root: nn.Module) -> None:
    """Back to shards, also where a forward pass was not followed by a backward pass: before anyone reads parameters."""
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, of which a process may have a part only; every process has to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def clip(parameters: Sequence[nn.Parameter], most: float) -> Tensor:
    """Scale gradients so that their norm, over all processes, is `most` at the most; returns what it was."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = whole(nn.utils.get_total_norm(gradients))
    nn.utils.clip_grads_with_norm_(parameters, most, norm)
    return norm


@contextmanager
def interruptions(processes: Processes) -> Iterator[Callable[[], bool]]:
    """A function that says whether any process was told to stop (SIGINT, SIGTERM) since; all have to ask together, and
    get the same answer. A signal that comes twice does what it always did."""
    told: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def hear(number: int, frame: FrameType | None) -> None:
        told.append(number)
        signal.signal(number, before[signal.Signals(number)])

    for number in numbers:
        signal.signal(number, hear)
    try:
        yield lambda: processes.any(bool(told))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
