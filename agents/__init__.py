"""Agents: policies, rollouts, planners, RL training, and a pool that runs them in many processes."""
