"""Mistakes in predictors, correctors and ODE solvers, one each, that the conformance checks must find and place.
Written before the checks were tuned to them: the checks of the first version caught 28 of 52 (14 of 20, 9 of 20, 5 of
12).
"""

import pytest
import torch

from sde_score.sampling import Corrector, Predictor
from sde_score.sdes import VPSDE, LinearSDE
from sde_score.solvers.runge_kutta import DOPRI5, EULER, HEUN, AdaptiveStep, FixedStep, Tableau
from sde_score.tensors import expand_like
from sde_score.testing import CheckFailed, check_corrector, check_predictor, check_solver


class Long(LinearSDE):
    """Constant β on [0, 10]."""

    def __init__(self):
        super().__init__(T=10.0, t_min=1e-3)

    def drift_coeff(self, t):
        return torch.full_like(t, -0.6)

    def diffusion_coeff(self, t):
        return torch.full_like(t, 1.2**0.5)


# --- predictors -----------------------------------------------------------------------------------------------------


class Euler(Predictor):
    """Euler-Maruyama with its parts apart, for mistakes to be made in one of them."""

    eta = 1.0

    def drift(self, score_fn, x, t):
        g2 = self.sde.apply_diffusion_sq(x, t, score_fn(x, t))
        return self.sde.drift(x, t) - 0.5 * (1 + self.eta**2) * g2

    def scale(self, x, t, dt):
        return self.eta * self.sde.diffusion(x, t) * torch.sqrt(dt)

    def step(self, score_fn, x, t, t_next, noise):
        dt = expand_like(t - t_next, x)
        x_mean = x - self.drift(score_fn, x, t) * dt
        return x_mean + self.scale(x, t, dt) * noise(x), x_mean


class Ancestral(Predictor):
    """x_mean = (x + var s)/a, noise √var std_s/std_t."""

    def step(self, score_fn, x, t, t_next, noise):
        a, step_std = (expand_like(c, x) for c in self.sde.transition(t_next, t))
        std_s, std_t = (expand_like(self.sde.marginal_coeffs(u)[1], x) for u in (t_next, t))
        x_mean = (x + step_std**2 * score_fn(x, t)) / a
        return x_mean + step_std * std_s / std_t * noise(x), x_mean


class HalfEta(Euler):
    eta = 0.5


class Flow(Euler):
    eta = 0.0


class MeanIsState(Euler):
    """x_mean with the noise in it."""

    def step(self, *args):
        x, _ = super().step(*args)
        return x, x


class MeanIsOld(Euler):
    def step(self, score_fn, x, t, t_next, noise):
        return super().step(score_fn, x, t, t_next, noise)[0], x.clone()


class GlobalNoise(Euler):
    def step(self, score_fn, x, t, t_next, noise):
        return super().step(score_fn, x, t, t_next, torch.randn_like)


class SharedNoise(Euler):
    """One draw for the whole batch."""

    def step(self, score_fn, x, t, t_next, noise):
        return super().step(score_fn, x, t, t_next, lambda x: noise(x[:1]).expand_as(x))


class CoefficientsOfHalf(Euler):
    def step(self, score_fn, x, t, t_next, noise):
        half = torch.full_like(t, self.sde.T / 2)
        x_mean = x - self.drift(lambda x, _: score_fn(x, t), x, half) * expand_like(t - t_next, x)
        return x_mean + self.scale(x, half, expand_like(t - t_next, x)) * noise(x), x_mean


class ScoreOfHalf(Euler):
    def step(self, score_fn, x, t, t_next, noise):
        return super().step(lambda x, t: score_fn(x, torch.full_like(t, self.sde.T / 2)), x, t, t_next, noise)


class DriftLinearInEta(HalfEta):
    def drift(self, score_fn, x, t):
        g2 = self.sde.apply_diffusion_sq(x, t, score_fn(x, t))
        return self.sde.drift(x, t) - 0.5 * (1 + self.eta) * g2


class NoiseSquaredInEta(HalfEta):
    def scale(self, x, t, dt):
        return self.eta * super().scale(x, t, dt)


class DriftOfEtaOne(HalfEta):
    def drift(self, score_fn, x, t):
        return self.sde.reverse(score_fn).drift(x, t)


class UnitInterval(Euler):
    """dt in units of T."""

    def __init__(self):
        super().__init__(Long())

    def step(self, score_fn, x, t, t_next, noise):
        return super().step(score_fn, x, t, t - (t - t_next) / self.sde.T, noise)


class LinearPartSign(Euler):
    def drift(self, score_fn, x, t):
        return super().drift(score_fn, x, t) - 2 * self.sde.drift(x, t)


class NoiseFloor(Euler):
    def scale(self, x, t, dt):
        return super().scale(x, t, dt + 1e-4)


class InFloat64(Euler):
    def step(self, *args):
        return tuple(v.double() for v in super().step(*args))


class OnCPU(Euler):
    def drift(self, score_fn, x, t):
        return super().drift(score_fn, x, t) + torch.zeros(x.shape[1:], dtype=x.dtype)


class InPlace(Euler):
    def step(self, score_fn, x, t, t_next, noise):
        x_next, x_mean = super().step(score_fn, x, t, t_next, noise)
        return x.copy_(x_next), x_mean


class Momentum(Euler):
    """What it remembers of one run reaches into the next."""

    before = None

    def drift(self, score_fn, x, t):
        new = super().drift(score_fn, x, t)
        old = self.before if self.before is not None and self.before.shape == new.shape else new
        self.before = new
        return 1.05 * new - 0.05 * old


class FirstTimeForAll(Euler):
    def step(self, score_fn, x, t, t_next, noise):
        return super().step(score_fn, x, t[:1].expand_as(t), t_next[:1].expand_as(t), noise)


class VarianceForStd(Ancestral):
    def step(self, score_fn, x, t, t_next, noise):
        x_next, x_mean = super().step(score_fn, x, t, t_next, noise)
        return x_mean + (x_next - x_mean) * expand_like(self.sde.transition(t_next, t)[1], x), x_mean


class WithoutDivision(Ancestral):
    def step(self, score_fn, x, t, t_next, noise):
        x_next, x_mean = super().step(score_fn, x, t, t_next, noise)
        a = expand_like(self.sde.transition(t_next, t)[0], x)
        return x_next + (a - 1) * x_mean, a * x_mean


class NotFiniteAtTheEnd(Ancestral):
    """Tweedie's data divided by a std that is 0 at the last time."""

    def step(self, score_fn, x, t, t_next, noise):
        x_next, x_mean = super().step(score_fn, x, t, t_next, noise)
        std = expand_like(self.sde.marginal_coeffs(t_next)[1], x)
        return x_next * (std / std), x_mean


PREDICTORS = [
    (MeanIsState, "x_mean"),
    (MeanIsOld, "x_mean"),
    (GlobalNoise, "noise"),
    (SharedNoise, "noise"),
    (CoefficientsOfHalf, "standard deviation|mean"),
    (ScoreOfHalf, "standard deviation|mean"),
    (DriftLinearInEta, "standard deviation|mean"),
    (NoiseSquaredInEta, "standard deviation"),
    (DriftOfEtaOne, "standard deviation"),
    (UnitInterval, "standard deviation|mean"),
    (LinearPartSign, "standard deviation|mean"),
    (NoiseFloor, "from t to t"),
    (InFloat64, "float64"),
    (OnCPU, "device"),
    (InPlace, "in place"),
    (Momentum, "state|same"),
    (FirstTimeForAll, "batch"),
    (VarianceForStd, "standard deviation"),
    (WithoutDivision, "standard deviation|mean"),
    (NotFiniteAtTheEnd, "t = 0|finite"),
]


def build(kind):
    return kind() if kind.__init__ is UnitInterval.__init__ else kind(VPSDE())


@pytest.mark.parametrize("right", [Euler, HalfEta, Flow, Ancestral])
@pytest.mark.parametrize("sde", [VPSDE, Long])
def test_right_predictors_pass(right, sde):
    check_predictor(right(sde()))


@pytest.mark.parametrize("mutant, words", PREDICTORS, ids=lambda v: getattr(v, "__name__", ""))
def test_mistakes_in_predictors_are_found_and_placed(mutant, words):
    with pytest.raises(CheckFailed, match=words):
        check_predictor(build(mutant))


# --- correctors -----------------------------------------------------------------------------------------------------


class Langevin(Corrector):
    """x_mean = x + e s, x = x_mean + √(2e) z, e = 2 (snr std)²."""

    def __init__(self, sde, snr: float = 0.16, n_steps: int = 1) -> None:
        super().__init__(sde)
        self.snr, self.n_steps = snr, n_steps

    def size(self, x, t):
        return 2 * (self.snr * self.sde.marginal_prob(x, t)[1]) ** 2

    def once(self, score_fn, x, t, noise):
        e = self.size(x, t)
        x_mean = x + e * score_fn(x, t)
        return x_mean + torch.sqrt(2 * e) * noise(x), x_mean

    def step(self, score_fn, x, t, noise):
        for _ in range(self.n_steps):
            x, x_mean = self.once(score_fn, x, t, noise)
        return x, x_mean


class StepsIgnored(Langevin):
    def step(self, score_fn, x, t, noise):
        return self.once(score_fn, x, t, noise)


class OneStepMore(Langevin):
    def step(self, score_fn, x, t, noise):
        return super().step(score_fn, self.once(score_fn, x, t, noise)[0], t, noise)


class CorrectedMeanIsState(Langevin):
    def once(self, *args):
        x, _ = super().once(*args)
        return x, x


class CorrectedMeanIsOld(Langevin):
    def once(self, score_fn, x, t, noise):
        return super().once(score_fn, x, t, noise)[0], x


class CorrectedMeanOfFirst(Langevin):
    """x_mean of the first of n_steps."""

    def step(self, score_fn, x, t, noise):
        first = None
        for _ in range(self.n_steps):
            x, x_mean = self.once(score_fn, x, t, noise)
            first = x_mean if first is None else first
        return x, first


class SizeOfHalf(Langevin):
    def size(self, x, t):
        return super().size(x, torch.full_like(t, self.sde.T / 2))


class StdForVariance(Langevin):
    """Right where std = 1, as at T/2 of VP."""

    def size(self, x, t):
        return 2 * self.snr**2 * self.sde.marginal_prob(x, t)[1]


class SnrForgotten(Langevin):
    def size(self, x, t):
        return super().size(x, t) / self.snr**2


class ScoreOfAnotherTime(Langevin):
    def once(self, score_fn, x, t, noise):
        return super().once(lambda x, t: score_fn(x, 0.8 * t), x, t, noise)


class ScoreHalved(Langevin):
    def once(self, score_fn, x, t, noise):
        return super().once(lambda x, t: 0.5 * score_fn(x, t), x, t, noise)


class WithoutNoise(Langevin):
    def once(self, score_fn, x, t, noise):
        return super().once(score_fn, x, t, lambda x: 0 * noise(x))


class TooMuchNoise(Langevin):
    def once(self, score_fn, x, t, noise):
        return super().once(score_fn, x, t, lambda x: 1.2 * noise(x))


class CorrectorGlobalNoise(Langevin):
    def once(self, score_fn, x, t, noise):
        return super().once(score_fn, x, t, torch.randn_like)


class CorrectorSharedNoise(Langevin):
    def once(self, score_fn, x, t, noise):
        return super().once(score_fn, x, t, lambda x: noise(x[:1]).expand_as(x))


class CorrectorSameNoiseEachStep(Langevin):
    """One draw for all of n_steps."""

    def step(self, score_fn, x, t, noise):
        z = noise(x)
        return super().step(score_fn, x, t, lambda _: z)


class CorrectorInFloat64(Langevin):
    def once(self, *args):
        return tuple(v.double() for v in super().once(*args))


class CorrectorOnCPU(Langevin):
    def size(self, x, t):
        return super().size(x, t) * torch.ones(len(x), dtype=x.dtype).reshape(-1, *(1,) * (x.ndim - 1))


class CorrectorInPlace(Langevin):
    def once(self, score_fn, x, t, noise):
        x_next, x_mean = super().once(score_fn, x, t, noise)
        return x.copy_(x_next), x_mean


class CorrectorRemembers(Langevin):
    """The step shrinks from call to call."""

    calls = 0

    def size(self, x, t):
        self.calls += 1
        return super().size(x, t) / (1 + 0.01 * self.calls)


class CorrectorOfFirstTime(Langevin):
    def size(self, x, t):
        return super().size(x, t[:1].expand_as(t))


CORRECTORS = [
    (StepsIgnored, "n_steps"),
    (OneStepMore, "n_steps"),
    (CorrectedMeanIsState, "x_mean"),
    (CorrectedMeanIsOld, "x_mean"),
    (CorrectedMeanOfFirst, "x_mean"),
    (SizeOfHalf, "p_t"),
    (StdForVariance, "p_t"),
    (SnrForgotten, "p_t|snr"),
    (ScoreOfAnotherTime, "p_t|time"),
    (ScoreHalved, "p_t"),
    (WithoutNoise, "p_t"),
    (TooMuchNoise, "p_t"),
    (CorrectorGlobalNoise, "noise"),
    (CorrectorSharedNoise, "noise"),
    (CorrectorSameNoiseEachStep, "noise"),
    (CorrectorInFloat64, "float64"),
    (CorrectorOnCPU, "device"),
    (CorrectorInPlace, "in place"),
    (CorrectorRemembers, "state|same"),
    (CorrectorOfFirstTime, "batch"),
]


@pytest.mark.parametrize("sde", [VPSDE, Long])
@pytest.mark.parametrize("n_steps", [1, 3])
def test_right_correctors_pass(n_steps, sde):
    check_corrector(Langevin(sde(), n_steps=n_steps))


@pytest.mark.parametrize("mutant, words", CORRECTORS, ids=lambda v: getattr(v, "__name__", ""))
def test_mistakes_in_correctors_are_found_and_placed(mutant, words):
    with pytest.raises(CheckFailed, match=words):
        check_corrector(mutant(VPSDE(), n_steps=3 if "Step" in mutant.__name__ or "First" in mutant.__name__ else 1))


# --- ODE solvers ----------------------------------------------------------------------------------------------------


class Adaptive(AdaptiveStep):
    tableau = DOPRI5


class Trapezoid(FixedStep):
    tableau = HEUN


class RtolIgnored(Adaptive):
    def __init__(self, rtol=1e-5, atol=1e-5, **kwargs):
        super().__init__(1e-5, atol, **kwargs)


class ToleranceIgnored(Adaptive):
    def integrate(self, *args):
        self.rtol = self.atol = 1e-4
        return super().integrate(*args)


class StepsOfItsOwn(Trapezoid):
    def __init__(self, steps=100):
        super().__init__(100)


class Coupled(Adaptive):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, control="batch", **kwargs)
        self.batch_coupled = False


class Told:
    """A counted right-hand side seen through another function."""

    def __init__(self, func, seen):
        self.func, self.seen = func, seen

    calls = property(lambda self: self.func.calls)

    def __call__(self, x, t):
        return self.seen(x, t)


class InSinglePrecision(Trapezoid):
    def integrate(self, func, x, t0, t1, callback):
        single = Told(func, lambda y, t: func(y.to(x.dtype), t).float())
        result = super().integrate(single, x.float(), t0, t1, callback)
        result.x = result.x.to(x.dtype)
        return result


class SolutionInFloat64(Trapezoid):
    def integrate(self, *args):
        result = super().integrate(*args)
        result.x = result.x.double()
        return result


class StartInPlace(Trapezoid):
    def integrate(self, func, x, t0, t1, callback):
        result = super().integrate(func, x, t0, t1, callback)
        result.x = x.copy_(result.x)
        return result


class GradientLost(Trapezoid):
    def integrate(self, func, x, t0, t1, callback):
        return super().integrate(func, x.detach(), t0, t1, callback)


class CallbackIgnored(Trapezoid):
    def integrate(self, func, x, t0, t1, callback):
        return super().integrate(func, x, t0, t1, None)


class EvaluationsUncounted(Trapezoid):
    def integrate(self, *args):
        result = super().integrate(*args)
        result.nfe = result.nfe // 4
        return result


class OrderOneClaimsTwo(FixedStep):
    tableau = EULER


class TimeOfStart(FixedStep):
    """All stages at the time of the step's beginning."""

    tableau = Tableau(order=2, c=(0.0, 0.0), a=((1.0,),), b=(0.5, 0.5))


SOLVER_MUTANTS = [
    (RtolIgnored, None, "rtol"),
    (ToleranceIgnored, None, "rtol|tolerance"),
    (StepsOfItsOwn, 2, "power|steps"),
    (Coupled, None, "batch_coupled"),
    (InSinglePrecision, 2, "float64|precision|power"),
    (SolutionInFloat64, 2, "float64"),
    (StartInPlace, 2, "in place"),
    (GradientLost, 2, "gradient"),
    (CallbackIgnored, 2, "callback"),
    (EvaluationsUncounted, 2, "nfe"),
    (OrderOneClaimsTwo, 2, "power"),
    (TimeOfStart, 2, "power|time"),
]


@pytest.mark.parametrize("right, order", [(Adaptive, None), (Trapezoid, 2)])
def test_right_solvers_pass(right, order):
    check_solver(right if order else right(), order=order)


@pytest.mark.parametrize("mutant, order, words", SOLVER_MUTANTS, ids=lambda v: getattr(v, "__name__", ""))
def test_mistakes_in_solvers_are_found_and_placed(mutant, order, words):
    with pytest.raises(CheckFailed, match=words):
        check_solver(mutant if order else mutant(), order=order)

