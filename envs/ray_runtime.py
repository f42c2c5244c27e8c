"""Helpers for Ray: connect, start and end actors, convert errors."""

import importlib.util
import logging
import time
from typing import Any

import torch

from starflow_world.errors import ConfigError, WorkerError

START_LIMIT = 300.0  # seconds in which an actor must have loaded its world
STORE_BYTES = 256 * 2**20
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def connect(actors: int, gpus_per_actor: float = 0.0, address: str | None = None) -> bool:
    """Connect to a Ray cluster with GPUs for `actors` actors; return whether this call started the cluster.

    Uses the cluster to which this process is connected, if any; else joins the one at `address`; without an address,
    starts a cluster for this process alone, on the loopback address, without dashboard.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError('actors: expected ray to be installed, found none; pip install "starflow-world[ray]"')
    if not isinstance(actors, int) or actors < 1 or not 0 <= gpus_per_actor < float("inf"):
        raise ConfigError(f"expected actors >= 1 and gpus_per_actor >= 0, found {actors!r:.30}, {gpus_per_actor!r:.30}")
    import ray

    gpus, started = actors * gpus_per_actor, not ray.is_initialized()
    if started and address is None:
        if gpus > torch.cuda.device_count():
            raise _too_few(gpus, torch.cuda.device_count())
        _start_alone(actors)
    elif started:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise WorkerError(f"address: expected one of a Ray cluster, found {address!r:.60}: {reason:.200}") from None
    free = _free_gpus(gpus)
    if gpus > free:
        if started:
            ray.shutdown()
        raise _too_few(gpus, free)
    return started


def _start_alone(actors: int) -> None:
    """Start a Ray cluster that listens on the loopback address only."""
    import ray
    from ray._private import ray_constants

    before = getattr(ray_constants, "ENABLE_RAY_CLUSTER", None)
    ray_constants.ENABLE_RAY_CLUSTER = False  # else Ray listens on the address of the network
    try:
        ray.init(address="local", num_cpus=actors, num_gpus=torch.cuda.device_count(), include_dashboard=False,
                 object_store_memory=STORE_BYTES, log_to_driver=False, logging_level=logging.ERROR,
                 _node_ip_address="127.0.0.1")
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
    address = ray.nodes()[0]["NodeManagerAddress"]
    if address != "127.0.0.1":
        ray.shutdown()
        raise WorkerError(f"ray {ray.__version__}: expected it to listen on 127.0.0.1, found {address}; "
                          "start one yourself and give its address")


def _free_gpus(wanted: float, patience: float = 5.0) -> float:
    """Return the number of free GPUs, waiting up to `patience` seconds for GPUs of actors that have just ended."""
    import ray

    until = time.monotonic() + patience
    while (free := float(ray.available_resources().get("GPU", 0))) < wanted and time.monotonic() < until:
        time.sleep(0.2)
    return free


def _too_few(wanted: float, free: float) -> ConfigError:
    return ConfigError(f"gpus_per_actor: expected {wanted:g} free GPUs for all actors, found {free:g}; "
                       "take fewer actors, or less of a GPU for each (0: none)")


def new_actor(plain: type, *args: Any, gpus: float, threads: int) -> Any:
    """Start an actor of a class in its own process. Ray does not restart it, since its state would be lost.

    It reserves no CPU, so that any number of actors fit; without a GPU it is still placed on a node with CPUs.
    """
    import ray

    variables = dict.fromkeys(THREADS, str(threads))
    resources = {"num_gpus": gpus, "num_cpus": 0} if gpus else {}  # else Ray's own default, which a 0 would change
    options = {"max_restarts": 0, "scheduling_strategy": "SPREAD", "runtime_env": {"env_vars": variables}}
    return ray.remote(plain).options(**resources, **options).remote(*args)


def end_actor(actor: Any) -> None:
    """Kill the process of an actor, even while it executes a call."""
    import ray

    if actor is not None and ray.is_initialized():
        ray.kill(actor, no_restart=True)


def check_portable(what: str, value: Any) -> None:
    """Raise ConfigError if a value cannot be sent to another process."""
    import ray

    try:
        ray.cloudpickle.dumps(value)
    except Exception as error:  # each type raises its own kind of error
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(f"{what}: expected something that can be sent to another process, found {reason:.200}; "
                          "define it at the top of a module, without open files, locks or windows") from None


def failure(error: Exception) -> Exception:
    """Return the exception raised in the actor, or Ray's error about an actor that did not answer."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else error
