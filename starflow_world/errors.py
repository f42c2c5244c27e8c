"""Errors that users meet: each message says what was expected, what was found and what to do."""


class StarflowError(Exception):
    """Root of every error that starflow_world raises on purpose."""


class ConfigError(StarflowError):
    """A configuration that cannot be meant: unknown key, wrong type, value out of range."""


class CheckpointError(StarflowError):
    """A world folder that is missing, damaged or of another kind."""


class DataError(StarflowError):
    """Frames, episodes, datasets or media that do not have the promised form."""


class StateError(StarflowError):
    """A world state or snapshot that does not fit the world it is used with."""


class ActionError(StarflowError):
    """An action outside the action space."""


class ScorerError(StarflowError):
    """A scorer that is damaged, belongs to another world, or is asked for more than its data support."""


class WorkerError(StarflowError):
    """A process of a pool that failed for good."""
