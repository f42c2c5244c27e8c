"""Classifier-free guidance of an autoregressive flow (STARFlow, proposition 2, for one normal per channel).

Of a mixture the component probabilities are guided, pi**(1 + w) / pi_null**w; its normals stay those of the text.
"""

from dataclasses import replace

from starflow_world.flow.density import Affine, Density, Mixture


def guide(conditional: Affine, unconditional: Affine, guidance: float) -> Affine:
    """Return the Gaussian proportional to conditional**(1 + w) / unconditional**w, per dimension; w = guidance.

        r = min(scale_c / scale_u, 1)**2;   d = 1 + w - w r
        mean = ((1 + w) mean_c - w r mean_u) / d;   scale = scale_c / sqrt(d)
    """
    ratio = (conditional.scale / unconditional.scale).clamp(max=1).square()
    denominator = 1 + guidance - guidance * ratio
    mean = ((1 + guidance) * conditional.mean - guidance * ratio * unconditional.mean) / denominator
    return Affine(mean, conditional.scale / denominator.sqrt(), conditional.hidden)


def guided(both: Density, rows: int, guidance: float) -> Density:
    """Return the guided density of 2B batch elements [text; null text], B = rows, for `draw` alone."""
    given, null = both.rows(slice(rows)), both.rows(slice(rows, None))
    if isinstance(given, Mixture) and isinstance(null, Mixture):
        return replace(given, null=null.base, guidance=guidance)
    assert isinstance(given, Affine)
    assert isinstance(null, Affine)
    return guide(given, null, guidance)
