"""A setting that a user gives has an effect, or is an error that names where it belongs; defaults are left alone."""

import numpy as np
import pytest

import sde_score
from sde_score.config import default_config, flat, make_config
from sde_score.data import DataInfo
from sde_score.keys import KEYS
from sde_score.run import load
from sde_score.run.unused import READ, check_given, check_read, without_effect
from sde_score.sampling import SAMPLERS, PCSampler

IMAGES, POINTS = DataInfo("images", (1, 8, 8), levels=256), DataInfo("points", (2,))


@pytest.mark.parametrize("method", ["pc", "ode", "sde", "published", "published_ode"])
def test_a_key_of_sampling_has_an_effect_where_the_method_has_it(method):
    config = make_config(sampling={"method": method})
    idle = {key.partition(".")[2] for key in without_effect(config) if key.startswith("sampling.")}
    takes = set(SAMPLERS.signature(method).replace("(", " ").replace(",", " ").replace("=", " ").split())
    assert idle == {"predictor", "corrector", "solver", "steps", "times", "t_min", "denoise"} - takes


GIVEN = [
    (dict(sampling={"method": "ode", "steps": 7}), None, 'heun(steps=7)"'),
    (dict(sampling={"method": "ode", "predictor": "euler_maruyama"}), None, "config.sampling.method=pc"),
    (dict(sampling={"solver": "heun"}), None, "config.sampling.method=ode"),
    (dict(sampling={"method": "ode(solver='heun')", "solver": "rk4"}), None, "says it already"),
    (dict(sampling={"times": "karras(steps=3)", "steps": 5}), None, "says it already"),
    (dict(data={"name": "digits", "holdout": 0.2}), None, "'digits' has no such setting"),
    (dict(data={"name": "digits", "frames": "all"}), None, "'digits' has no such setting"),
    (dict(data={"name": "./x.npy", "download": True}), None, "x.npy' has no such setting"),
    (dict(data={"name": "./photos.zip", "layout": "NHWC"}), None, "photos.zip' has no such setting"),
    (dict(data={"name": "folder(path='x', holdout=0.2)", "holdout": 0.1}), None, "says it already"),
    (dict(data={"random_flip": True}), POINTS, "mirrors images"),
    (dict(data={"centered": False}), POINTS, "scaler(standardize=True)"),
    (dict(data={"uniform_dequantization": True}), POINTS, "continuous"),
    (dict(data={"codec": "scaler(dequantize=False)", "uniform_dequantization": True}), IMAGES, "says it already"),
    (dict(model={"ema_rate": 0.0, "ema_ramp": True}), None, "nothing is averaged"),
    (dict(optim={"warmup": 0, "published_warmup": True}), None, "no warm-up"),
]


@pytest.mark.parametrize("sections, info, words", GIVEN, ids=[str(row[0]) for row in GIVEN])
def test_what_is_given_in_vain(sections, info, words):
    config, given = make_config(**sections), flat(sections)
    key = list(given)[-1]
    with pytest.raises(ValueError, match=f"config.{key}=.* has no effect: ") as told:
        check_given(config, given, info)
    assert words in str(told.value)
    check_given(config, [k for k in given if k != key], info)  # there, and not given: no matter


def test_what_says_what_is_done_anyway_is_left_alone():
    check_given(make_config(data={"download": False, "image_size": 8}), ["data.download", "data.image_size"])
    config = make_config(data={"uniform_dequantization": False, "random_flip": False, "holdout": None})
    check_given(config, ["data.uniform_dequantization", "data.random_flip", "data.holdout"], POINTS)


def test_every_key_belongs_to_some_command():
    """What no command on a run reads, is read by `train` or is what a run is."""
    for command in READ:
        read = {key for key in KEYS if not _refused(command, key)}
        assert {"device", "data.root"} <= read and not {"training.n_iters", "optim.eps"} <= read
        assert {key for key in KEYS if key.startswith("sampling.")} <= read or command in ("likelihood", "report")
        check_read(command, dict.fromkeys(KEYS, False))  # nothing changes


def _refused(command, key):
    try:
        check_read(command, {key: True})
    except ValueError:
        return True
    return False


def test_in_python(toy_run, tmp_path):
    run = load(toy_run)
    with pytest.raises(ValueError, match=r'config.sampling.steps=7 has no effect.*"heun\(steps=7\)"'):
        run.sample(2, sampler="ode", steps=7)
    with pytest.raises(ValueError, match="config.sampling.solver=heun has no effect"):
        run.sample(2, solver="heun")
    with pytest.raises(ValueError, match="steps=... has no effect beside sampler=PCSampler"):
        run.sample(2, sampler=PCSampler(run.sde, steps=2), steps=7)
    assert len(run.sample(3, sampler=PCSampler(run.sde, steps=2), batch_size=2).x) == 3
    with pytest.raises(ValueError, match="repeats=2 has no effect.*config.likelihood.trace=exact"):
        run.likelihood(num=4, repeats=2)
    with pytest.raises(ValueError, match="repeats=2 has no effect"):
        run.log_prob(np.zeros((2, 2)), repeats=2)
    assert run.likelihood(num=4, repeats=2, trace="hutchinson", solver="rk4(steps=1)")["repeats"] == 2
    with pytest.raises(ValueError, match="say the same"):
        sde_score.train("toy2d", minutes=1, workdir=tmp_path, training={"max_seconds": 60.0})


def test_the_defaults_are_given_by_nobody():
    assert not [key for key in without_effect(default_config(), IMAGES) if default_of(key) not in (None, ())]


def default_of(key):
    value = default_config()
    for part in key.split("."):
        value = value[part]
    return value
