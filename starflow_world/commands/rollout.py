"""The verb `rollout`: imagined episodes of a world, as files."""

from pathlib import Path


def rollout(
    *, out: Path, world: str = "babyai-gotolocal", episodes: int = 100, policy: str = "random", seed: int = 0,
    text: str = "", max_steps: int = 0, actors: int = 0, gpus_per_actor: float = 0.0, threads: int = 1,
    time_limit: float = 300.0, address: str = "",
) -> None:
    """Imagine episodes of a world into a folder, in this process or spread over Ray actors; resumable as collect is.

    Args:
        out: folder for the episodes.
        world: folder or name of a shipped world.
        episodes: how many.
        policy: random; those of collect that read a simulator cannot play in a dream.
        seed: every episode follows from it and its index.
        text: begin with starts of this text; empty: with any.
        max_steps: time limit; 0: the world's own.
        actors: Ray actors; 0: this process.
        gpus_per_actor: GPUs for each actor, such as 1 or 0.25; 0: on the CPU.
        threads: of each process; the numbers depend on it.
        time_limit: seconds that an actor may take for an episode.
        address: of a Ray cluster; empty: one started for the purpose.
    """
    from starflow_world.agents.collect import rollout as run
    from starflow_world.agents.registry import make_policy

    run(world, out, episodes=episodes, policy=make_policy(policy), seed=seed, text=text or None,
        max_steps=max_steps or None, actors=actors, gpus_per_actor=gpus_per_actor, threads=threads,
        time_limit=time_limit, address=address or None)
    print(out)
