"""Planning: step branches of a state in the world and return the action sequence with the largest value.

The value of a sequence is its discounted predicted reward, each reward weighted by the probability that the episode has
not ended before it. "random" samples N sequences; "cem" resamples them around the best (cross-entropy method;
Rubinstein 1999); "best-first" grows a tree: it expands the leaves with the largest upper bound, N branches at a time,
and prunes frames that it has reached before. N branches take one forward pass of the world.

Shapes: N branches, T steps ahead, frames (N, H, W, 3) u8.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from starflow_world.agents.proposals import choices, proposal
from starflow_world.agents.search_settings import Search
from starflow_world.envs.episode import (
    RewardFunction,
    call_reward_fn,
    describe_step,
    last_frames,
    observations,
    row_info,
)
from starflow_world.errors import ConfigError, StateError
from starflow_world.world import World
from starflow_world.world.state import WorldState

PATCHES = 16
"""Patches along the shorter side of a frame, of which the mean colours are compared."""
ALIVE = 1e-3
TINY = 1e-12


@dataclass(frozen=True)
class ActionPlan:
    """An action sequence and its predicted outcome.

    actions (T); frames (T, H, W, 3) u8: predicted after each; rewards, ends (T,): predicted rewards, and probabilities
    that the episode ends there; chances (T,): share of the noise draws that agree with the plan so far; value: its
    discounted value; imagined: world steps that the search took.
    """

    actions: list[Any]
    frames: np.ndarray
    rewards: np.ndarray
    ends: np.ndarray
    chances: np.ndarray
    value: float
    imagined: int

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def promise(self) -> float:
        """Return the expected sum of rewards, undiscounted."""
        return float((self.rewards * self.chances * np.cumprod(np.append(1.0, 1 - self.ends))[:-1]).sum())


class Gallery:
    """A set of frames compared by mean colours of patches, since imagined pixels vary by a grey level or two."""

    def __init__(self, same: float) -> None:
        self._same = same
        self._known: np.ndarray | None = None

    def add(self, frames: np.ndarray) -> np.ndarray:
        """Add frames (N, H, W, 3); return a mask (N,) of the new frames; among equal frames only the first is new."""
        marks = _marks(frames)
        fresh = np.zeros(len(marks), bool)
        for row, mark in enumerate(marks):
            if not self._near(mark[None])[0]:
                fresh[row] = True
                self._known = mark[None] if self._known is None else np.concatenate((self._known, mark[None]))
        return fresh

    def knows(self, frames: np.ndarray) -> np.ndarray:
        """Return a mask (N,) bool of the frames (N, H, W, 3) that equal a frame added before."""
        return self._near(_marks(frames))

    def _near(self, marks: np.ndarray) -> np.ndarray:
        if self._known is None:
            return np.zeros(len(marks), bool)
        return np.array([np.abs(self._known - mark).max(-1).min() <= self._same for mark in marks])


def _marks(frames: np.ndarray) -> np.ndarray:
    """Return mean colours (N, k) of patches; partial patches at the edges are padded with their last pixels."""
    count, height, width, _ = frames.shape
    side = max(1, min(height, width) // PATCHES)
    patched = np.pad(frames, ((0, 0), (0, -height % side), (0, -width % side), (0, 0)), mode="edge")
    cells = patched.reshape(count, patched.shape[1] // side, side, patched.shape[2] // side, side, 3)
    return cells.mean((2, 4), dtype=np.float32).reshape(count, -1)


def find_plan(
    world: World, state: WorldState, search: Search, *, seed: int, seen: Gallery | None = None,
    reward_fn: RewardFunction | None = None,
) -> ActionPlan:
    """Return the best plan from `state` (one row); the result depends on these arguments only.

    seen: frames at which the episode is known not to have ended: a termination that is predicted there is ignored, with
    the reward that may belong to it.
    reward_fn: replaces the world's reward head, as in `WorldEnv`. Branches draw their noise from `seed`, not from the
    state's key, so a plan does not use the noise that the env will draw.
    """
    if len(state) != 1:
        raise StateError(f"state: expected one row to plan from, found {len(state)}")
    if not world.config.outcome.width and reward_fn is None:
        raise ConfigError(f"world {world.config.name} predicts no rewards: pass reward_fn=...")
    ahead = Lookahead(world, np.random.default_rng(seed), Gallery(search.same) if seen is None else seen, reward_fn)
    find = best_first if search.method == "best-first" else shoot
    return find(ahead, state, search)


class Outlook(NamedTuple):
    """Result of one step of N branches: frames (N, H, W, 3) u8, rewards (N,), termination probabilities (N,)."""

    state: WorldState
    frames: np.ndarray
    rewards: np.ndarray
    ends: np.ndarray


@dataclass
class Lookahead:
    """Simulator of branches: steps them in the world, computes rewards and terminations, and counts the steps."""

    world: World
    rng: np.random.Generator
    seen: Gallery
    reward_fn: RewardFunction | None = None
    imagined: int = 0

    def branch(self, state: WorldState) -> WorldState:
        """Return the state with a new noise key for each row."""
        return replace(state, key=torch.from_numpy(self.rng.integers(2**63, size=len(state))))

    def step(self, state: WorldState, before: np.ndarray, actions: Sequence[Any]) -> Outlook:
        """Step all branches, overwriting the cache of `state`; `before` (N, H, W, 3): their current frames."""
        state, transition = self.world.step(state, list(actions), reuse=True)
        self.imagined += len(state)
        frames = observations(transition)
        rewards, ends = (t.double().cpu().numpy().copy() for t in (transition.reward, transition.end_probability))
        if self.reward_fn is not None:
            infos = describe_step(self.world, transition, state.texts, between=False)
            ends = ends if self.world.config.outcome.width else np.zeros(len(state))
            for row, action in enumerate(actions):
                reward, end = call_reward_fn(
                    self.reward_fn, before[row], action, frames[row], row_info(infos, row)
                )
                rewards[row], ends[row] = reward, ends[row] if end is None else float(end)
        known = self.seen.knows(frames)
        # of the reward, what an end with this probability can bring; the rest comes without an end, and is believed
        last = np.minimum(np.abs(rewards), ends * self._largest(rewards))
        rewards = np.where(known, np.sign(rewards) * (np.abs(rewards) - last), rewards)
        return Outlook(state, frames, rewards, np.where(known, 0.0, ends))

    def _largest(self, rewards: np.ndarray) -> np.ndarray:
        """Return the largest size (N,) of one reward: the world's, or what a reward_fn gave."""
        if self.reward_fn is not None:
            return np.abs(rewards)
        return np.full(len(rewards), self.world.config.outcome.largest_reward)


# ---- sequences -------------------------------------------------------------------------------------------------------


def shoot(ahead: Lookahead, state: WorldState, search: Search) -> ActionPlan:
    """Sample sequences of `horizon` actions, once (random) or in rounds around the best (cem); return the best plan."""
    count = max(1, search.branches // search.draws)
    drawn = proposal(ahead.world.action_space, search.actions, search.horizon, search.branches, ahead.rng)
    best: ActionPlan | None = None
    for _ in range(search.rounds if search.method == "cem" else 1):
        plans = _futures(ahead, state, drawn.draw(count), search)
        values = np.array([plan.value for plan in plans])
        order = np.argsort(-values, kind="stable")
        if best is None or plans[order[0]].value > best.value:
            best = plans[order[0]]
        elite = [row for row in order[: max(1, count // 8)] if values[row] > values.min()]
        if elite:  # equal values do not rank the sequences
            drawn.refit(np.array(elite))
    assert best is not None
    return replace(best, imagined=ahead.imagined)


def _futures(
    ahead: Lookahead, state: WorldState, sequences: Sequence[Sequence[Any]], search: Search
) -> list[ActionPlan]:
    """Return a plan per sequence of actions (N, T): averages over `draws`, frames of the first draw, truncated where
    the episode has ended with probability 0.5."""
    rows = [row for row in range(len(sequences)) for _ in range(search.draws)]
    branches, looks = ahead.branch(state[[0] * len(rows)]), []
    before = last_frames(ahead.world, state).repeat(len(rows), axis=0)
    for actions in zip(*sequences, strict=True):
        look = ahead.step(branches, before, [actions[row] for row in rows])
        branches, before = look.state, look.frames
        looks.append(look)
    rewards, ends = np.stack([o.rewards for o in looks], 1), np.stack([o.ends for o in looks], 1)
    frames = np.stack([o.frames for o in looks], 1)[:: search.draws]
    alive = np.cumprod(np.concatenate((np.ones_like(ends[:, :1]), 1 - ends), 1), 1)
    gains, alive = (x.reshape(-1, search.draws, x.shape[1]).mean(1) for x in (rewards * alive[:, :-1], alive))
    rewards, ends = gains / np.maximum(alive[:, :-1], TINY), 1 - alive[:, 1:] / np.maximum(alive[:, :-1], TINY)
    values = (gains * search.discount ** np.arange(gains.shape[1])).sum(1)
    lengths = np.where(alive[:, 1:].min(1) < 0.5, (alive[:, 1:] < 0.5).argmax(1) + 1, gains.shape[1])
    return [
        ActionPlan(list(sequence)[:end], frames[row, :end], rewards[row, :end], ends[row, :end], np.ones(end),
             float(values[row]), 0)
        for row, (sequence, end) in enumerate(zip(sequences, lengths.tolist(), strict=True))
    ]


# ---- a tree ----------------------------------------------------------------------------------------------------------


@dataclass
class Node:
    """A node of the tree: the action that led to it from `parent`, its frame, predicted reward and end probability.

    earned: value of the path to it; chance: probability that the path leads to it; alive: probability that the episode
    has not ended; state: one row, freed when the node is expanded.
    """

    parent: "Node | None"
    action: Any
    frame: np.ndarray
    reward: float = 0.0
    end: float = 0.0
    earned: float = 0.0
    chance: float = 1.0
    alive: float = 1.0
    depth: int = 0
    state: WorldState | None = field(default=None, repr=False)

    def way(self) -> "list[Node]":
        """Return the nodes on the path from the root's child to this node."""
        return [] if self.parent is None else [*self.parent.way(), self]


def best_first(ahead: Lookahead, state: WorldState, search: Search) -> ActionPlan:
    """Expand the leaves with the largest bound, `branches` at a time, until no bound exceeds the best value.

    The bound of a leaf is the value of its path plus the world's largest single reward, discounted and weighted by the
    probability to reach the leaf alive. The largest value of a reward_fn is unknown: then only the budget ends the
    search. Leaves whose frame was reached before are not expanded.
    """
    moves = choices(ahead.world.action_space, search.actions, search.branches, ahead.rng)
    largest, beyond = ahead.world.config.outcome.largest_reward, 0.0 if ahead.reward_fn is None else math.inf
    root = Node(None, None, last_frames(ahead.world, state)[0], state=state[0])
    reached = Gallery(search.same)
    reached.add(root.frame[None])
    queue, count, best, each = [(-math.inf, 0, root)], 1, root, len(moves) * search.draws
    while queue and (best is root or (ahead.imagined < search.budget and beyond - queue[0][0] > best.earned)):
        leaves = [heapq.heappop(queue)[2] for _ in range(min(len(queue), max(1, search.branches // each)))]
        for child, fresh in _expand(ahead, leaves, moves, search, reached):
            if best is root or child.earned > best.earned:
                best = child
            if fresh and child.chance * child.alive > ALIVE:
                hope = child.earned + search.discount**child.depth * child.chance * child.alive * largest
                heapq.heappush(queue, (-hope, count, child))
                count += 1
            else:
                child.state = None
        turns = max(1, (search.budget - ahead.imagined) // each)
        queue = heapq.nsmallest(turns, queue)  # keep only nodes that the budget can expand
    way = best.way()
    rewards, ends, chances = np.array([(node.reward, node.end, node.chance) for node in way]).T
    frames = np.stack([node.frame for node in way])
    return ActionPlan([node.action for node in way], frames, rewards, ends, chances, best.earned, ahead.imagined)


def _expand(
    ahead: Lookahead, leaves: Sequence[Node], moves: Sequence[Any], search: Search, reached: Gallery
) -> list[tuple[Node, bool]]:
    """Step every candidate action from every leaf, `draws` times, in one forward pass; return a child per distinct
    frame, and whether that frame is new."""
    pairs = [(leaf, move) for leaf in leaves for move in moves]
    rows = [pair for pair in pairs for _ in range(search.draws)]
    state = WorldState.stack([leaf.state for leaf, _ in rows if leaf.state is not None])
    look = ahead.step(ahead.branch(state), np.stack([leaf.frame for leaf, _ in rows]), [move for _, move in rows])
    children = []
    for first, (parent, action) in enumerate(pairs):
        for equal in _equal_frames(look.frames, range(first * search.draws, (first + 1) * search.draws), search.same):
            row, chance = equal[0], parent.chance * len(equal) / search.draws
            reward, end = float(look.rewards[equal].mean()), float(look.ends[equal].mean())
            earned = parent.earned + search.discount**parent.depth * chance * parent.alive * reward
            fresh = bool(reached.add(look.frames[row : row + 1])[0])
            child = Node(
                parent, action, look.frames[row], reward, end, earned, chance, parent.alive * (1 - end),
                parent.depth + 1, look.state[row] if fresh else None,
            )
            children.append((child, fresh))
    for leaf in leaves:
        leaf.state = None
    return children


def _equal_frames(frames: np.ndarray, rows: Sequence[int], same: float) -> list[list[int]]:
    """Return groups of row indices with equal frames."""
    groups, left = [], list(rows)
    while left:
        first = Gallery(same)
        first.add(frames[left[:1]])
        near = first.knows(frames[left])
        groups.append([row for row, yes in zip(left, near, strict=True) if yes])
        left = [row for row, yes in zip(left, near, strict=True) if not yes]
    return groups
