"""Mistakes in objectives and parameterisations, one each, that the conformance checks must find and place. Written
before there were such checks: the first version caught none of 39.
"""

import pytest
import torch

from sde_score.models.parameterization import PARAMETERIZATIONS, Parameterization
from sde_score.objectives import OBJECTIVES, Objective
from sde_score.sdes import EDMSDE, VESDE, VPSDE
from sde_score.tensors import draw_uniform, mean_except_batch
from sde_score.testing import CheckFailed, check_objective, check_parameterization

# --- objectives -----------------------------------------------------------------------------------------------------


class Denoising(Objective):
    """w(t) ‖ε̂(x_t, t) − z‖² with its parts apart, for mistakes to be made in one of them."""

    def times(self, u):
        return self.sde.t_min + (self.sde.T - self.sde.t_min) * u

    def noised(self, x0, t, z):
        mean, std = self.sde.marginal_prob(x0, t)
        return mean + std * z

    def eps(self, model, x, t, **cond):
        if hasattr(model, "eps"):
            return model.eps(x, t, **cond)
        return -self.sde.marginal_prob(x, t)[1] * model(x, t, **cond)

    def target(self, x0, t, z):
        return z

    def weight(self, t):
        return torch.ones_like(t)

    def __call__(self, model, x0, *, noise, **cond):
        t = self.times(draw_uniform(noise, x0.new_empty(len(x0))))
        z = noise(x0)
        error = self.eps(model, self.noised(x0, t, z), t, **cond) - self.target(x0, t, z)
        return self.weight(t) * mean_except_batch(error**2)


class TargetSign(Denoising):
    def target(self, x0, t, z):
        return -z


class TargetIsScore(Denoising):
    """z/std against a network of ε."""

    def target(self, x0, t, z):
        return z / self.sde.marginal_prob(x0, t)[1]


class NoiseUnscaled(Denoising):
    def noised(self, x0, t, z):
        return self.sde.marginal_prob(x0, t)[0] + z


class MeanForgotten(Denoising):
    def noised(self, x0, t, z):
        return x0 + self.sde.marginal_prob(x0, t)[1] * z


class VarianceForStd(Denoising):
    def noised(self, x0, t, z):
        mean, std = self.sde.marginal_prob(x0, t)
        return mean + std**2 * z


class AnotherTime(Denoising):
    """The model is told a time a little off."""

    def eps(self, model, x, t, **cond):
        return super().eps(model, x, 0.9 * t, **cond)


class NegativeWeight(Denoising):
    def weight(self, t):
        return -torch.ones_like(t)


class WeightChangesSign(Denoising):
    def weight(self, t):
        return self.sde.T * 0.5 - t


class Averaged(Denoising):
    """One number for the whole batch."""

    def __call__(self, model, x0, *, noise, **cond):
        return super().__call__(model, x0, noise=noise, **cond).mean()


class AveragedAndExpanded(Denoising):
    def __call__(self, model, x0, *, noise, **cond):
        loss = super().__call__(model, x0, noise=noise, **cond)
        return loss.mean().expand_as(loss)


class Standardised(Denoising):
    """Losses over their mean in the batch."""

    def __call__(self, model, x0, *, noise, **cond):
        loss = super().__call__(model, x0, noise=noise, **cond)
        return loss / loss.detach().mean()


class PerElement(Denoising):
    def __call__(self, model, x0, *, noise, **cond):
        t = self.times(draw_uniform(noise, x0.new_empty(len(x0))))
        z = noise(x0)
        return (self.eps(model, self.noised(x0, t, z), t, **cond) - z) ** 2


class GlobalNoise(Denoising):
    def __call__(self, model, x0, *, noise, **cond):
        return super().__call__(model, x0, noise=torch.randn_like, **cond)


class GlobalTimes(Denoising):
    """The noise is that given; the times are not."""

    def times(self, u):
        return super().times(torch.rand_like(u))


class TimesBelow(Denoising):
    def times(self, u):
        return self.sde.T * u


class TimesBeyond(Denoising):
    def times(self, u):
        return self.sde.t_min + 1.01 * self.sde.T * u


class InFloat64(Denoising):
    def __call__(self, model, x0, *, noise, **cond):
        return super().__call__(model, x0, noise=noise, **cond).double()


class Detached(Denoising):
    def eps(self, model, x, t, **cond):
        return super().eps(model, x, t, **cond).detach()


class ConditionsDropped(Denoising):
    def __call__(self, model, x0, *, noise, **cond):
        return super().__call__(model, x0, noise=noise)


class DataInPlace(Denoising):
    def noised(self, x0, t, z):
        mean, std = self.sde.marginal_prob(x0, t)
        return x0.copy_(mean + std * z)


OBJECTIVE_MUTANTS = [
    (TargetSign, "exact score"),
    (TargetIsScore, "exact score"),
    (NoiseUnscaled, "exact score"),
    (MeanForgotten, "exact score"),
    (VarianceForStd, "exact score"),
    (AnotherTime, "exact score"),
    (NegativeWeight, "negative|maximum"),
    (WeightChangesSign, "negative|maximum"),
    (Averaged, r"\(B,\)"),
    (AveragedAndExpanded, "batch"),
    (Standardised, "batch"),
    (PerElement, r"\(B,\)"),
    (GlobalNoise, "noise"),
    (GlobalTimes, "noise"),
    (TimesBelow, "times"),
    (TimesBeyond, "times"),
    (InFloat64, "float64"),
    (Detached, "gradient"),
    (ConditionsDropped, "cond"),
    (DataInPlace, "in place"),
]


@pytest.mark.parametrize("sde", [VPSDE, VESDE, EDMSDE])
def test_right_objectives_pass(sde):
    check_objective(Denoising(sde()))


@pytest.mark.parametrize(
    "spec",
    [
        "dsm",
        "dsm(weighting='likelihood')",
        "dsm(weighting='likelihood', times='importance')",
        "dsm(weighting='edm', times='log_normal', reduce='sum')",
        "dsm(times='stratified')",
        "dsm(times='mixed')",
    ],
)
@pytest.mark.parametrize("sde", [VPSDE, VESDE])
def test_the_library_s_objectives_pass(spec, sde):
    check_objective(OBJECTIVES.build(spec, sde()))


@pytest.mark.parametrize("mutant, words", OBJECTIVE_MUTANTS, ids=lambda v: getattr(v, "__name__", ""))
def test_mistakes_in_objectives_are_found_and_placed(mutant, words):
    with pytest.raises(CheckFailed, match=words):
        check_objective(mutant(VPSDE()))


# --- parameterisations ----------------------------------------------------------------------------------------------


class PredictsData(Parameterization):
    """ε̂ = (x − m F)/std, F the data, with its parts apart."""

    def eps(self, network, x, t, **cond):
        m, std = self.coeffs(x, t)
        return (x - m * network(self.seen(x, t), self.c_noise(t), **cond)) / std

    def seen(self, x, t):
        m, std = self.coeffs(x, t)
        return x / torch.sqrt((m * self.sigma_data) ** 2 + std**2)


class PredictsV(Parameterization):
    """The network predicts v = α ε − σ x_0 of a variance-preserving path."""

    sign = 1.0

    def eps(self, network, x, t, **cond):
        m, std = self.coeffs(x, t)
        return std * x + self.sign * m * network(x, self.c_noise(t), **cond)


class DataWithoutMean(PredictsData):
    def eps(self, network, x, t, **cond):
        m, std = self.coeffs(x, t)
        return (x - network(self.seen(x, t), self.c_noise(t), **cond)) / std


class DataOverVariance(PredictsData):
    def eps(self, network, x, t, **cond):
        return super().eps(network, x, t, **cond) / self.coeffs(x, t)[1]


class VSign(PredictsV):
    sign = -1.0


class VSwapped(PredictsV):
    """std and m exchanged."""

    def eps(self, network, x, t, **cond):
        m, std = self.coeffs(x, t)
        return m * x + std * network(x, self.c_noise(t), **cond)


class ScoreSign(PredictsData):
    def score(self, network, x, t, **cond):
        return -super().score(network, x, t, **cond)


class ScoreOverVariance(PredictsData):
    def std(self, x, t):
        return super().std(x, t) ** 2


class ScoreOfHalf(PredictsData):
    def std(self, x, t):
        return super().std(x, torch.full_like(t, self.sde.T / 2))


class NoiseLevelConstant(PredictsData):
    def c_noise(self, t):
        return torch.zeros_like(t)


class NoiseLevelFolds(PredictsData):
    """The same number for two noise levels."""

    def c_noise(self, t):
        return (t - 0.7 * self.sde.T) ** 2


class NoiseLevelOfBatch(PredictsData):
    def c_noise(self, t):
        return super().c_noise(t) - super().c_noise(t).mean()


class NoiseLevelInFloat64(PredictsData):
    def c_noise(self, t):
        return super().c_noise(t.double())


class NoiseLevelNotFinite(PredictsData):
    def c_noise(self, t):
        return torch.log(t - self.sde.t_min)


class NoiseLevelShape(PredictsData):
    def c_noise(self, t):
        return super().c_noise(t)[:, None]


class EpsInFloat64(PredictsData):
    def eps(self, network, x, t, **cond):
        return super().eps(network, x, t, **cond) * torch.ones(1, dtype=torch.float64, device=x.device)


class EpsOnCPU(PredictsData):
    def eps(self, network, x, t, **cond):
        return super().eps(network, x, t, **cond) * torch.ones(x.shape[1:], dtype=x.dtype)


class InputNormalisedByBatch(PredictsData):
    def seen(self, x, t):
        return x / x.std()


class InputInPlace(PredictsData):
    def seen(self, x, t):
        m, std = self.coeffs(x, t)
        return x.div_(torch.sqrt((m * self.sigma_data) ** 2 + std**2))


class ConditionsForgotten(PredictsData):
    def eps(self, network, x, t, **cond):
        return super().eps(network, x, t)


class NetworkIgnored(PredictsData):
    def eps(self, network, x, t, **cond):
        return super().eps(lambda x, c, **cond: 0 * network(x, c, **cond), x, t, **cond)


PARAMETERIZATION_MUTANTS = [
    (DataWithoutMean, "x0", "perfect network"),
    (DataOverVariance, "x0", "perfect network"),
    (VSign, "v", "perfect network"),
    (VSwapped, "v", "perfect network"),
    (ScoreSign, "x0", "score"),
    (ScoreOverVariance, "x0", "score"),
    (ScoreOfHalf, "x0", "score"),
    (NoiseLevelConstant, "x0", "c_noise"),
    (NoiseLevelFolds, "x0", "c_noise"),
    (NoiseLevelOfBatch, "x0", "c_noise.*(batch|other)"),
    (NoiseLevelInFloat64, "x0", "c_noise.*float64"),
    (NoiseLevelNotFinite, "x0", "c_noise.*finite"),
    (NoiseLevelShape, "x0", r"c_noise.*\(B,\)"),
    (EpsInFloat64, "x0", "eps.*float64"),
    (EpsOnCPU, "x0", "eps.*device"),
    (InputNormalisedByBatch, "x0", "eps.*(batch|other)"),
    (InputInPlace, "x0", "in place"),
    (ConditionsForgotten, "x0", "cond"),
    (NetworkIgnored, "x0", "network"),
]


def edm_target(x0, eps, m, std, sigma_data=0.5):
    """F of Karras et al. 2022, eq. 8: (x_0 − c_skip y)/c_out, y = x_0 + σ ε."""
    sigma = std / m
    y, total = x0 + sigma * eps, sigma**2 + sigma_data**2
    return (x0 - sigma_data**2 / total * y) / (sigma * sigma_data / total.sqrt())


TARGETS = {"eps": "eps", "x0": "x0", "v": "v", "score": "score", "edm": edm_target}


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("sde", [VPSDE, VESDE, EDMSDE])
def test_the_library_s_parameterizations_pass(name, sde):
    sde = sde()
    check_parameterization(PARAMETERIZATIONS.build(name, sde), target=TARGETS[name])


@pytest.mark.parametrize("right, target", [(PredictsData, "x0"), (PredictsV, "v")])
def test_right_parameterizations_pass(right, target):
    check_parameterization(right(VPSDE()), target=target)


@pytest.mark.parametrize("mutant, target, words", PARAMETERIZATION_MUTANTS, ids=lambda v: getattr(v, "__name__", ""))
def test_mistakes_in_parameterizations_are_found_and_placed(mutant, target, words):
    with pytest.raises(CheckFailed, match=words):
        check_parameterization(mutant(VPSDE()), target=target)
