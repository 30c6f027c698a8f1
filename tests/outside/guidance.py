"""Classifier-free guidance of one's own: a transform of a score that needs its branch without condition."""

from sde_score.score import TransformedScore


class Guidance(TransformedScore):
    """`s = s_∅ + scale (s_c − s_∅)`: 1 is no guidance, 0 leaves out the condition (Ho & Salimans 2021)."""

    def __init__(self, inner, scale):
        super().__init__(inner)
        self.scale = scale

    def __call__(self, x, t):
        without = self.inner.unconditional()(x, t)
        return without + self.scale * (self.inner(x, t) - without)
