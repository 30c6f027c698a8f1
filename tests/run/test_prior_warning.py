"""A prior that does not stand for the data at T is said by whoever trains, samples or computes a likelihood."""

import torch

import sde_score

BRIEF = {"n_iters": 2, "eval_freq": 0, "snapshot_freq": 0, "tensorboard": False}


def test_training_sampling_and_likelihood_say_it(toy_config, tmp_path, capsys):
    x = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    run = sde_score.train(
        str(toy_config), workdir=tmp_path / "run", data=x, sde="vp(beta_max=0.1)", training=BRIEF
    )
    words = "Warning: The prior of VPSDE does not stand for these data at T = 1"
    said = capsys.readouterr().err
    assert words in said and "Raise beta_max, now 0.1" in said and "standard deviations apart" in said
    assert words in (tmp_path / "run" / "log.txt").read_text()
    run.sample(2)
    assert words in capsys.readouterr().err
    run.likelihood("test", num=4)
    assert words in capsys.readouterr().err
    # known from the checkpoint: the data are not needed for it
    again = sde_score.load(tmp_path / "run")
    assert again.prior == run.prior and again.prior.reach > 3
    again.sample(2)
    assert words in capsys.readouterr().err


def test_nothing_is_said_where_it_fits(toy_config, tmp_path, capsys):
    run = sde_score.train(str(toy_config), workdir=tmp_path / "run", training=BRIEF)
    run.sample(2)
    run.likelihood("test", num=4)
    assert "Warning: The prior" not in capsys.readouterr().err and run.prior.mean == 0.0
