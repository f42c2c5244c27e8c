"""Who acts: policies, rollouts, planners, learners, and the pool that runs them on many processes."""
