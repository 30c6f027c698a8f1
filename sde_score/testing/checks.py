"""Conformance checks, in the manner of scikit-learn's estimator checks: the same plain functions for this library and
for its users.

    from sde_score.testing import check_sde
    check_sde(MySDE())

runs every `check_...` function that applies and raises `CheckFailed`, an `AssertionError` that says what is wrong and
which mistake would look like that. All of it runs in float64 on the CPU, with fixed seeds.

A statistical check compares a mean or a variance with its exact value at SIGMAS = 5 standard errors, on top of a small
allowance for the discretisation: a correct object fails one such comparison with probability 6e-7 per fresh seed; with
the fixed seed it fails never or always.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from sde_score.registry import suggest

SIGMAS = 5.0
FUNDAMENTAL = (
    "check_times", "check_prior_sampling", "check_shapes", "check_arguments", "check_predictor_shapes",
    "check_predictor_arguments", "check_predictor_noise", "check_corrector_shapes", "check_corrector_arguments",
    "check_corrector_noise", "check_solver_arguments", "check_objective_shapes", "check_objective_arguments",
    "check_objective_noise", "check_parameterization_shapes", "check_parameterization_arguments",
)  # fmt: skip
"""Checks after whose failure the others would only repeat it, under another name."""
Check = Callable[..., None]


class CheckFailed(AssertionError):
    """A conformance check found something wrong. `results` holds what became of all checks of a run."""

    results: list[CheckResult]


@dataclass(frozen=True)
class CheckResult:
    """What became of one check: `"passed"`, `"skipped"` or `"failed"`, and why."""

    name: str
    outcome: str
    message: str = ""


def _require(condition: bool | Tensor, message: str) -> None:
    if not bool(condition):
        raise CheckFailed(message)


def _name(obj: object) -> str:
    return type(obj).__name__


def name_of(check: Check) -> str:
    """The name of a check, as `skip` has it."""
    return getattr(check, "func", check).__name__


def run_checks(checks: Iterable[Check], skip: dict[str, str] | None = None) -> list[CheckResult]:
    """Run checks and say what became of each. After a fundamental one has failed the rest are left out. `skip` maps
    names of checks to the reason for leaving them out.

    Raises `ValueError` for names in `skip` that no check has.
    """
    checks = list(checks)
    skip = dict(skip or {})
    known = [name_of(check) for check in checks]
    unknown = [name for name in skip if name not in known]
    if unknown:
        raise ValueError(f"skip names unknown checks: {', '.join(unknown)}.{suggest(unknown[0], known)}")
    results = []
    for check in checks:
        name = name_of(check)
        if name in skip:
            results.append(CheckResult(name, "skipped", skip[name]))
            continue
        try:
            check()
        except CheckFailed as error:
            results.append(CheckResult(name, "failed", str(error)))
        except Exception as error:  # a crash inside the object under test is a finding like any other
            results.append(CheckResult(name, "failed", f"raised {type(error).__name__}: {error}"))
        else:
            results.append(CheckResult(name, "passed"))
        if results[-1].outcome == "failed" and name in FUNDAMENTAL:
            break  # what follows would only repeat it, slowly
    return results


def _run(checks: Iterable[Check], subject: str, skip: dict[str, str] | None) -> list[CheckResult]:
    """Run all checks, then raise one error with all failures."""
    results = run_checks(checks, skip)
    failed = [r for r in results if r.outcome == "failed"]
    if failed:
        lines = "\n".join(f"  {r.name}: {r.message}" for r in failed)
        error = CheckFailed(f"{subject} failed {len(failed)} of {len(results)} checks:\n{lines}")
        error.results = results
        raise error
    return results
