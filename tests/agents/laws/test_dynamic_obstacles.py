"""The enumerated law of Dynamic-Obstacles against the simulator itself."""

import copy
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from starflow_world.agents.collect import play
from starflow_world.agents.environment import Environment
from starflow_world.agents.laws import law_of
from starflow_world.agents.laws.dynamic_obstacles import BALL, DynamicObstaclesLaw
from starflow_world.agents.policy import RandomPolicy

ROOM = Environment("MiniGrid-Dynamic-Obstacles-8x8-v0", max_steps=64)


def law() -> DynamicObstaclesLaw:
    found = law_of(ROOM)
    assert isinstance(found, DynamicObstaclesLaw)
    return found


def room(seed: int, steps: int) -> Any:
    """The env after random turns and safe steps."""
    env, known, rng = ROOM.make(), law(), np.random.default_rng(seed)
    env.reset(seed=seed)
    for _ in range(steps):
        env.step(int(rng.choice(known.choices(known.read(np.asarray(env.render())[None])[0]))))
    return env


def symbols(env: Any) -> np.ndarray:
    return law().read(np.asarray(env.render())[None])[0]


def simulated(env: Any, action: int, count: int) -> Counter[bytes]:
    """Next pictures of copies of the simulator, in which the obstacles move in a random order."""
    size = env.unwrapped.width * env.unwrapped.tile_size
    known, rng = law_of(replace(ROOM, env=env.spec.id, frame_size=size)), np.random.default_rng(5)
    found = Counter[bytes]()
    assert known is not None
    for seed in range(count):
        other = copy.copy(env.unwrapped)
        other.grid, other.obstacles = copy.deepcopy((other.grid, other.obstacles))
        other.obstacles = [other.obstacles[i] for i in rng.permutation(len(other.obstacles))]
        other._np_random, other.gen_obs = np.random.default_rng(seed), dict
        other.step(action)
        found[known.read(np.asarray(other.render())[None])[0].tobytes()] += 1
    return found


@pytest.mark.parametrize(("seed", "action"), [(0, 0), (3, 2)])
def test_the_enumeration_agrees_with_the_simulator(seed: int, action: int) -> None:
    env, known, count = room(seed, 12), law(), 1500
    state = symbols(env)
    outcomes, seen = known.outcomes(state, action), simulated(env, action, count)
    assert sum(outcomes.values()) == pytest.approx(1)
    assert set(seen) <= set(outcomes), "the simulator shows nothing that the law calls impossible"
    directions = known.events(state, action)
    for event, law_of_event in directions.items():
        frequency = Counter[str]()
        for picture, times in seen.items():
            after = np.frombuffer(picture, np.int8).reshape(8, 8)
            observed = known.observed(state, action, after)
            assert observed is not None
            for value, share in observed[event].items():
                frequency[value] += times * share / count  # type: ignore[assignment]
        assert 0.5 * sum(abs(frequency[v] - law_of_event.get(v, 0)) for v in frequency | law_of_event) < 0.06
    expected = sum(p * (1 - (1 - p) ** count) for p in outcomes.values())
    covered = sum(outcomes[picture] for picture in seen)
    assert covered == pytest.approx(expected, abs=0.03), "frequent pictures are seen, rare ones not more than rarely"


def test_in_a_crowded_room_every_next_picture_has_its_probability() -> None:
    """A room of 5x5 cells with two obstacles: few pictures, so each one's frequency can be counted."""
    crowded = Environment("MiniGrid-Dynamic-Obstacles-5x5-v0", frame_size=40)
    env, known = crowded.make(), law_of(crowded)
    assert isinstance(known, DynamicObstaclesLaw)
    env.reset(seed=1)
    state = known.read(np.asarray(env.render())[None])[0]
    count = 3000
    seen, outcomes = simulated(env, 2, count), known.outcomes(state, 2)
    assert set(seen) == set(outcomes)
    for picture, chance in outcomes.items():
        assert seen[picture] / count == pytest.approx(chance, abs=5 * math.sqrt(chance * (1 - chance) / count))


def test_a_sample_has_the_probability_that_the_enumeration_gives() -> None:
    known, state, rng = law(), symbols(room(2, 9)), np.random.default_rng(0)
    outcomes = known.outcomes(state, 1)
    drawn = [known.sample(state, 1, rng) for _ in range(300)]
    for picture in drawn:
        assert known.nats(state, 1, picture) == pytest.approx(math.log(outcomes[picture.tobytes()]))
    entropy = -sum(p * math.log(p) for p in outcomes.values())
    surprise = -np.array([known.nats(state, 1, picture) for picture in drawn])
    assert surprise.mean() == pytest.approx(entropy, abs=5 * surprise.std() / 300**0.5)


def test_frames_are_read_and_drawn() -> None:
    env = room(4, 10)
    frame = np.asarray(env.render())[None]
    known = law()
    assert (known.draw(known.read(frame)) == frame).all()
    frame = frame.copy()
    frame[0, 8:16, 8:16] //= 2
    frame[0, 16:24, 16:24] ^= 255
    assert (known.read(frame) == -1).sum() >= 1


def test_balls_that_vanish_jump_or_stand_still_are_illegal() -> None:
    known, state = law(), symbols(room(6, 8))
    after = known.sample(state, 0, np.random.default_rng(0))
    assert known.nats(state, 0, after) > -math.inf
    assert known.nats(state, 1, after) == -math.inf, "the agent turned the other way"
    ball = np.argwhere(after == BALL)[0]
    gone = after.copy()
    gone[tuple(ball)] = 0
    assert known.nats(state, 0, gone) == -math.inf
    far = next(cell for cell in np.argwhere(after == 0) if abs(np.argwhere(state == BALL) - cell).max(1).min() > 1)
    jumped = gone.copy()
    jumped[tuple(far)] = BALL
    assert known.nats(state, 0, jumped) == -math.inf
    assert known.observed(state, 0, jumped) is None


def test_every_transition_of_real_episodes_is_possible() -> None:
    """Random play runs into walls and obstacles, also into those that have moved away or in front of it."""
    known, env, collisions = law(), ROOM.make(), 0
    for index in range(20):
        episode = play(env, RandomPolicy(), seed=0, index=index, reward="raw")
        pictures, actions = known.read(episode.frames), episode.actions.argmax(-1)
        assert (pictures >= 0).all()
        for t in range(1, len(episode)):
            assert known.nats(pictures[t - 1], int(actions[t]), pictures[t]) > -math.inf
        collisions += episode.rewards[-1] < 0
    assert collisions > 5


def test_the_agent_on_the_goal_ends_the_episode() -> None:
    known, env = law(), room(0, 0)
    env.unwrapped.agent_pos, env.unwrapped.agent_dir = (5, 6), 0
    for ball, place in zip(env.unwrapped.obstacles, ((1, 1), (2, 1), (3, 1), (4, 1)), strict=True):
        env.unwrapped.grid.set(*ball.cur_pos, None)
        ball.cur_pos = place
    for ball in env.unwrapped.obstacles:
        env.unwrapped.grid.set(*ball.cur_pos, ball)
    before = symbols(env)
    assert known.choices(before) == (0, 1), "a step forward would end it"
    assert not known.ended(before)
    assert env.step(2)[2]
    assert known.nats(before, 2, symbols(env)) > -math.inf
    assert known.ended(symbols(env))


def test_entropy_of_a_random_players_states_is_about_seven_nats() -> None:
    """Measured once over many states: 6.74 nats a frame."""
    known, rng, entropies = law(), np.random.default_rng(0), []
    for seed in range(12):
        env = room(seed, 3 * seed % 20)
        outcomes = known.outcomes(symbols(env), int(rng.integers(3)))
        entropies.append(-sum(p * math.log(p) for p in outcomes.values()))
    assert np.mean(entropies) == pytest.approx(6.74, abs=0.5)


def test_an_environment_without_a_known_law_has_none() -> None:
    assert law_of(Environment("MiniGrid-Empty-8x8-v0")) is None
    assert law_of(Environment("MiniGrid-Dynamic-Obstacles-6x6-v0")) is None, "64 pixels are not 6 whole tiles"
