"""CartPole in pixels: Gymnasium's physics, frames that follow from seed and actions, disturbances as they are named."""

import gymnasium
import numpy as np
import pytest

import starflow_world  # noqa: F401  (registers the env)
from starflow_world.agents.collect import play
from starflow_world.agents.environment import make_env
from starflow_world.agents.registry import make_policy
from starflow_world.envs.cartpole_pixels import CartPolePixels, Disturbance, clean_frame


@pytest.fixture
def env() -> CartPolePixels:
    made = CartPolePixels()
    made.reset(seed=3)
    return made


def test_the_physics_is_gymnasiums(env: CartPolePixels) -> None:
    real = gymnasium.make("CartPole-v1").unwrapped
    real.reset(seed=0)
    real.theta_threshold_radians, real.state = 1.0, env.moved.state
    for action in (0, 1, 1, 0):
        env.step(action)
        for _ in range(4):
            real.step(action)
        np.testing.assert_allclose(env.moved.state, real.state, atol=1e-12)


def test_green_is_half_a_frame_older(env: CartPolePixels) -> None:
    before = env.moved.state
    env.step(1)
    clean = clean_frame(env.moved)
    assert (clean[..., 0] == clean[..., 2]).all()
    assert (clean[..., 0] != clean[..., 1]).any()
    x, speed = env.moved.half[0], before[1]
    assert x - before[0] == pytest.approx(0.02 * (2 * speed) + 0.02**2 * 9.7, abs=1e-5)


def test_a_hundredth_of_a_pixel_shows(env: CartPolePixels) -> None:
    state = env.moved.state + np.array([0.01 / 12, 0, 0, 0])
    moved = type(env.moved)(state, state)
    still = type(env.moved)(env.moved.state, env.moved.state)
    assert 0.05 < np.abs(clean_frame(moved) - clean_frame(still)).sum() < 5


def test_frames_follow_from_seed_and_actions() -> None:
    def run(seed: int) -> list[bytes]:
        env = CartPolePixels()
        return [env.reset(seed=seed)[0].tobytes(), *(env.step(a)[0].tobytes() for a in (0, 1, 1))]

    assert run(5) == run(5)
    assert len(set(run(5)) & set(run(6))) == 0


def test_render_gives_the_frame_again_and_its_noise_has_the_promised_deviation(env: CartPolePixels) -> None:
    frame = env.step(0)[0]
    assert (env.render() == frame).all()
    residual = frame / 255 - clean_frame(env.moved)
    assert residual.std() == pytest.approx(env.noise, rel=0.05)


def test_a_forecast_changes_nothing_and_no_disturbance_is_the_nominal_step(env: CartPolePixels) -> None:
    before, frame = env.moved.state.copy(), env.frame()
    env.forecast(1, Disturbance(mass=1.5, force=-10))
    assert (env.moved.state == before).all()
    assert (env.frame() == frame).all()
    expected = env.forecast(1, Disturbance()).state
    env.step(1)
    assert (env.moved.state == expected).all()


@pytest.mark.parametrize(("disturbance", "push"), [
    (Disturbance(action=1.5), 15.0), (Disturbance(offset=0.2), 12.0), (Disturbance(force=-10.0), 0.0),
])
def test_disturbed_pushes_are_other_pushes(env: CartPolePixels, disturbance: Disturbance, push: float) -> None:
    real = gymnasium.make("CartPole-v1").unwrapped
    real.reset(seed=0)
    real.state, real.force_mag = env.moved.state, push
    for _ in range(4):
        real.step(1)
    np.testing.assert_allclose(env.forecast(1, disturbance).state, real.state, atol=1e-12)


def test_a_heavier_pole_and_cart_move_less(env: CartPolePixels) -> None:
    light, heavy = (env.forecast(1, Disturbance(mass=m)).state - env.moved.state for m in (1.0, 1.5))
    assert 0 < heavy[1] < 0.8 * light[1]
    assert env.forecast(1, Disturbance()).state[1] == env.moved.state[1] + light[1]  # the masses are back


@pytest.mark.parametrize("lag", [1, 2])
def test_correlated_noise_keeps_its_variance_and_remembers_its_lag(env: CartPolePixels, lag: int) -> None:
    env.disturbance = Disturbance(correlation=0.95, lag=lag)
    grains = []
    for t in range(12):
        env.step(t % 2)
        grains.append(env.grain[-1])
    late = np.stack(grains[6:])
    assert late.std() == pytest.approx(1, abs=0.02)
    found = [np.corrcoef(grains[-1].ravel(), grains[-1 - back].ravel())[0, 1] for back in (1, 2)]
    assert found[lag - 1] == pytest.approx(0.95, abs=0.01)
    assert found[2 - lag] == pytest.approx(0.95**2 if lag == 1 else 0, abs=0.03)


def test_balance_keeps_it_up_and_collect_can_play_it() -> None:
    env = make_env("CartPolePixels-v0", max_steps=30)
    episode = play(env, make_policy("balance"), seed=1, index=0)
    assert episode.frames.shape[1:] == (64, 64, 3)
    assert len(episode) > 15
    assert episode.digest() == play(env, make_policy("balance"), seed=1, index=0).digest()
