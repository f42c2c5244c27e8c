"""CartPole in pixels: Gymnasium's physics, observed as noisy 64 x 64 frames, one action per four physics steps.

A single image of a cart and a pole does not show their velocities, and a world that predicts a frame from the previous
one needs an observable state. So the green channel of a frame is two physics steps (0.04 s) older than red and blue.
Actions push with 10 N to the left (0) or right (1), as Gymnasium's do. The physics can be disturbed (PEDM: Haider et
al. 2023, AAMAS; correlated noise: Nasvytis et al. 2024, AAMAS), and `forecast` computes the effect of any disturbance.
"""

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control import CartPoleEnv

FORCE, SKIP, SIDE = 10.0, 4, 64
PIXELS_PER_METRE, POLE, LOW, HIGH = 12.0, 38.0, 0.2, 0.8
FARTHEST, STEEPEST = 2.4, 0.5
STARTS = (0.8, 0.3, 0.12, 0.3)


@dataclass(frozen=True)
class Disturbance:
    """A deviation from the nominal dynamics: factors of mass and action, an offset of the action (in units of the full
    push), the standard deviation `jitter` of normal noise on it, a force in newtons, and the correlation of the pixel
    noise with that of `lag` frames before, at unchanged variance."""

    mass: float = 1.0
    action: float = 1.0
    offset: float = 0.0
    jitter: float = 0.0
    force: float = 0.0
    correlation: float = 0.0
    lag: int = 1


@dataclass(frozen=True, eq=False)
class Moved:
    """Result of an action: the state (4,), and the state half a frame earlier."""

    half: np.ndarray
    state: np.ndarray


class CartPolePixels(gymnasium.Env[np.ndarray, Any]):
    """CartPole env with frames (64, 64, 3) u8; reward 1 while the pole stands and the cart is on the track.

    `noise` is the standard deviation of the pixel noise, in units of the full range. Frames depend only on the seed,
    the actions and the number of steps.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 12}  # noqa: RUF012 (as Gymnasium declares it)

    def __init__(self, noise: float = 0.02, render_mode: str | None = None) -> None:
        self.noise, self.render_mode = noise, render_mode
        self.action_space = spaces.Discrete(2)
        self.observation_space = spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8)
        self.physics = CartPoleEnv()
        self.physics.theta_threshold_radians, self.physics.x_threshold = STEEPEST, FARTHEST
        self.disturbance = Disturbance()
        self.masses = self.physics.masscart, self.physics.masspole

    def get_action_meanings(self) -> list[str]:
        """Return the names of the actions, as ALE's environments do."""
        return ["LEFT", "RIGHT"]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Start near the middle, with a slightly tilted pole and random velocities."""
        super().reset(seed=seed)
        state = self.np_random.uniform(-np.array(STARTS), STARTS)
        self.key, self.steps = int(self.np_random.integers(2**32)), 0
        self.disturbance, self.grain = Disturbance(), [self.fresh_grain()]
        self.physics.reset(seed=0)
        self.moved = Moved(state - 0.04 * np.array((state[1], 0, state[3], 0)), state)
        return self.frame(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Apply one action for four physics steps."""
        self.moved = self.forecast(action, self.disturbance)
        self.steps += 1
        self.grain = [*self.grain[-2:], self.next_grain(self.disturbance)]
        x, _, angle, _ = self.moved.state
        fallen = bool(abs(x) > FARTHEST or abs(angle) > STEEPEST)
        return self.frame(), float(not fallen), fallen, False, {}

    def render(self) -> np.ndarray:
        """Return the current frame."""
        return self.frame()

    def forecast(self, action: int, disturbance: Disturbance) -> Moved:
        """Return the result of an action under a disturbance, without taking it."""
        pole, kept = self.physics, self.moved
        pole.masscart, pole.masspole = (mass * disturbance.mass for mass in self.masses)
        pole.total_mass, pole.polemass_length = pole.masscart + pole.masspole, pole.masspole * pole.length
        pushed = disturbance.action * (2 * int(action) - 1) + disturbance.offset
        if disturbance.jitter:
            pushed += disturbance.jitter * float(np.random.default_rng((self.key, self.steps, 1)).standard_normal())
        states, pole.state = [kept.state], kept.state
        for _ in range(SKIP):
            pole.force_mag, pole.steps_beyond_terminated = FORCE * pushed + disturbance.force, None
            pole.step(1)
            states.append(np.array(pole.state))
        return Moved(states[SKIP // 2], states[-1])

    def frame(self) -> np.ndarray:
        """Return the current state as a frame with the noise of this step."""
        return self.seen(clean_frame(self.moved), self.grain[-1])

    def seen(self, clean: np.ndarray, grain: np.ndarray) -> np.ndarray:
        """Add noise (64, 64, 3) of deviation 1, scaled, to a clean frame (64, 64, 3); return u8."""
        return (255 * (clean + self.noise * grain)).round().clip(0, 255).astype(np.uint8)

    def fresh_grain(self) -> np.ndarray:
        """Return the nominal noise of this step (64, 64, 3), deviation 1, independent of other steps."""
        return np.random.default_rng((self.key, self.steps, 0)).standard_normal((SIDE, SIDE, 3))

    def next_grain(self, disturbance: Disturbance) -> np.ndarray:
        """Return the noise of this step, correlated with earlier noise under a disturbance."""
        fresh, share = self.fresh_grain(), disturbance.correlation
        if not share or len(self.grain) < disturbance.lag:
            return fresh
        return share * self.grain[-disturbance.lag] + (1 - share**2) ** 0.5 * fresh


def clean_frame(moved: Moved) -> np.ndarray:
    """Return the noise-free frame (64, 64, 3) of a state, from 0 to 1: bright cart and pole with soft edges."""
    now, half = brightness(moved.state), brightness(moved.half)
    return np.stack((now, half, now), axis=-1)


def brightness(state: np.ndarray) -> np.ndarray:
    """Return the brightness (64, 64) of cart and pole in a state (4,), with accurate subpixel positions."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] + 0.5
    middle, top = SIDE / 2 + PIXELS_PER_METRE * state[0], 50.0
    cart = _inside(x - middle, y - top - 3, 6, 3)
    sine, cosine = np.sin(state[2]), np.cos(state[2])
    along, across = (x - middle) * sine - (y - top) * cosine, (x - middle) * cosine + (y - top) * sine
    pole = _inside(across, along - POLE / 2, 2, POLE / 2)
    return LOW + (HIGH - LOW) * np.maximum(cart, pole)


def _inside(x: np.ndarray, y: np.ndarray, width: float, height: float) -> np.ndarray:
    """Return the share of each pixel inside a centred box with these half sizes; edges are two pixels wide."""
    return np.clip((width - np.abs(x)) / 2 + 0.5, 0, 1) * np.clip((height - np.abs(y)) / 2 + 0.5, 0, 1)
