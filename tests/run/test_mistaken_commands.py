"""Mistaken commands: the exit status, and what the answer must hold for the line to be right the next time."""

import shutil
import sys

import pytest

# The line and the words of its answer. All end with status 2, and nothing is begun. WORKDIR stands for --workdir of a
# trained run, TRAIN for --config of a small configuration and a new --workdir.
MISTAKEN = [
    # commands
    ("fit --config=digits", ["'fit'", "Write sde-score train"]),
    ("generate --workdir=x", ["'generate'", "Write sde-score sample"]),
    ("test --workdir=x", ["Write sde-score evaluate"]),
    ("eval --workdir=x", ["Write sde-score evaluate"]),
    ("nll --workdir=x", ["Write sde-score likelihood"]),
    ("resume --workdir=x", ["Write sde-score train"]),
    ("smaple", ["Did you mean 'sample'"]),
    ("--config=digits", ["the command comes first", "sde-score train --config=digits"]),
    # flags that go by another name here
    ("train TRAIN --epochs=10", ["no flag --epochs", "--config.training.n_iters=", "batch size"]),
    ("train TRAIN --steps=10", ["--config.training.n_iters=10"]),
    ("train TRAIN --device=cpu", ["--config.device=cpu"]),
    ("train TRAIN --lr=1e-4", ["--config.optim.lr=1e-4"]),
    ("train TRAIN --learning-rate=1e-4", ["--config.optim.lr=1e-4"]),
    ("train TRAIN --batch_size=32", ["--config.training.batch_size=32"]),
    ("train TRAIN --batch-size 32", ["--config.training.batch_size="]),
    ("train TRAIN --seed=3", ["--config.seed=3"]),
    ("train TRAIN --sde=ve", ["--config.sde=ve"]),
    ("train TRAIN --model=mlp", ["--config.model.name=mlp"]),
    ("train TRAIN --output=runs/x", ["--workdir=runs/x"]),
    ("train TRAIN --resume", ["the same command again"]),
    ("train TRAIN --gpu=0", ["--config.device=cuda"]),
    ("train TRAIN --fp16", ["--config.training.precision=bf16"]),
    ("train TRAIN --ema_decay=0.99", ["--config.model.ema_rate=0.99"]),
    ("train TRAIN --beta_max=10", ['--config.sde="vp(beta_min=']),
    ("train TRAIN --num=5", ["--num", "sde-score sample, likelihood"]),
    ("train TRAIN --sampling.steps=5", ["--config.sampling.steps=5"]),
    ("train TRAIN --wrkdir=x", ["Did you mean 'workdir'"]),
    ("train TRAIN --n_iters=5", ["--config.training.n_iters=5"]),
    ("train TRAIN --snr=0.1", ['--config.sampling.corrector="langevin(snr=']),
    ("sample WORKDIR --num_samples=16", ["--num=16"]),
    ("sample WORKDIR --n=16", ["--num=16"]),
    ("sample WORKDIR --steps=16", ["--config.sampling.steps=16"]),
    ("sample WORKDIR --batch_size=16", ["--config.sampling.batch_size=16"]),
    ("sample WORKDIR --method=ode", ["--config.sampling.method=ode"]),
    ("sample WORKDIR --output=x.png", ["--tag="]),
    ("sample WORKDIR --overwrite", ["sde-score train"]),
    ("sample WORKDIR --ckpt=x.pt", ["--checkpoint=x.pt"]),
    ("sample WORKDIR --t_min=0.1", ["--config.sampling.t_min=0.1"]),
    ("likelihood WORKDIR --t_min=0.1", ["--config.likelihood.t_min=0.1"]),
    ("likelihood WORKDIR --rtol=1e-5", ['--config.likelihood.solver="dopri5(rtol=']),
    ("evaluate WORKDIR --num_samples=50", ["--config.evaluation.num_samples=50"]),
    # how flags are written
    ("train TRAIN lr=1e-4", ["'lr=1e-4'", "write --config.optim.lr=1e-4"]),
    ("train TRAIN config.sde=ve", ["write --config.sde=ve"]),
    ("train --workdir=x digits", ["write --config=digits"]),
    ("train TRAIN --overwrite True", ["--overwrite=True"]),
    ("train TRAIN --config.data.centered False", ["--config.data.centered=False"]),
    ("train TRAIN --config.sde", ["config.sde"]),
    ("train TRAIN --config=digits", ["--config is given 2 times"]),
    ("train TRAIN --minutes=1 --config.training.max_seconds=60", ["say the same"]),
    ("train TRAIN --flagfile=nowhere.txt", ["nowhere.txt"]),
    ("import --plugin=x.py", ["no flag --plugin", "sde-score train"]),
    # configurations
    ("train --config=celeba --workdir=x", ["--config=images --config.data.name=celeba"]),
    ("train --config=fashion_mnist --workdir=x", ["--config=mnist --config.data.name=fashion_mnist"]),
    ("train --config=two_moons --workdir=x", ["--config=toy2d --config.data.name=two_moons"]),
    ("train --config=digitz --workdir=x", ["Did you mean 'digits'"]),
    ("train --config=published:ve/cifar10 --workdir=x", ["ve/cifar10_ncsnpp"]),
    ("train --config=digits:vesde --workdir=x", ["config.sde", "Write 've'"]),
    # keys
    ("train TRAIN --config.sampling.snr=0.1", ["no key config.sampling.snr", 'corrector="langevin(snr=']),
    ("train TRAIN --config.sampling.num_steps=5", ["--config.sampling.steps"]),
    ("train TRAIN --config.training.lr=1e-3", ["--config.optim.lr"]),
    ("train TRAIN --config.lr=1e-3", ["--config.optim.lr"]),
    ("train TRAIN --config.training.epochs=3", ["--config.training.n_iters"]),
    ("train TRAIN --config.optim.learning_rate=1", ["--config.optim.lr"]),
    ("train TRAIN --config.training.batch_sise=1", ["Did you mean 'batch_size'"]),
    ("train TRAIN --config.sampling=ode", ["config.sampling is a section", "method"]),
    # values
    ("train TRAIN --config.training.max_seconds=3m", ["must be a number", "write 180"]),
    ("train TRAIN --config.training.n_iters=100k", ["Write 100000"]),
    ("train TRAIN --config.model.class_conditional=yes", ["True or False", "Write True"]),
    ("train TRAIN --config.optim.lr=-1", ["config.optim.lr=-1.0", "above 0"]),
    ("train TRAIN --config.optim.name=sgd", ["'adam' or 'adamw'"]),
    ("train TRAIN --config.optim.schedule=linear", ["'constant' or 'cosine'"]),
    ("train TRAIN --config.training.log_freq=0", ["at least 1"]),
    ("train TRAIN --config.device=gpu", ["'gpu'", "'cuda'"]),
    ("train TRAIN --minutes=0", ["--minutes=0"]),
    ("sample WORKDIR --num=-3", ["--num=-3", "positive"]),
    ("sample WORKDIR --seed=-1", ["--seed=-1"]),
    # components
    ("train TRAIN --config.sde=VESDE", ["Write 've'"]),
    ("train TRAIN --config.sde=vpsde", ["Write 'vp'"]),
    ("train TRAIN --config.sde=VP", ["Did you mean 'vp'"]),
    ("train TRAIN --config.sde=vp:0.1", ['"vp(beta_min=0.1)"']),
    ("train TRAIN --config.sde='vp'", ["Leave out its own quotes"]),
    ("train TRAIN --config.model.name=unet2d", ["Write 'unet'"]),
    ("train TRAIN --config.model.parameterization=epsilon", ["Write 'eps'"]),
    ("train TRAIN --config.training.objective=mse", ["Write 'dsm'"]),
    ("train TRAIN --config.data.name=fashionmnist", ["'fashion_mnist'"]),
    ("sample WORKDIR --config.sampling.predictor=ddim", ["'ancestral_sampling(eta=0)'"]),
    ("sample WORKDIR --config.sampling.predictor=ddpm", ["Write 'ancestral_sampling'"]),
    ("sample WORKDIR --config.sampling.predictor=langevin", ["a corrector", "--config.sampling.corrector=langevin"]),
    ("sample WORKDIR --config.sampling.predictor=heun", ["method=ode", "--config.sampling.solver=heun"]),
    ("sample WORKDIR --config.sampling.predictor langevin", ["--config.sampling.corrector=langevin"]),
    ("sample WORKDIR -config.sampling.predictor=pndm", ["--config.sampling.method=ode"]),
    ("sample WORKDIR --config.sampling.method=ddim", ["predictor='ancestral_sampling(eta=0)'"]),
    ("sample WORKDIR --config.sampling.method=em", ["--config.sampling.predictor=euler_maruyama"]),
    ("sample WORKDIR --config.sampling.method=euler", ["method=ode", "--config.sampling.solver=euler"]),
    ("sample WORKDIR --config.sampling.method=ode --config.sampling.solver=RK45", ["Write 'dopri5'"]),
    ("likelihood WORKDIR --config.likelihood.solver=rk45", ["Write 'dopri5'"]),
    ("likelihood WORKDIR --config.likelihood.trace=hutchinson:4", ['"hutchinson(probes=4)"']),
    ("likelihood WORKDIR --config.likelihood.trace=skilling", ["Write 'hutchinson'"]),
    ("evaluate WORKDIR --config.evaluation.metrics=('fid',)", ["fd", "features=inception"]),
    # what has no effect
    ("sample WORKDIR --config.sampling.method=ode --config.sampling.steps=7", ["no effect", '"heun(steps=7)"']),
    ("sample WORKDIR --config.sampling.method=ode --config.sampling.predictor=none", ["no effect", "pc"]),
    ("sample WORKDIR --config.sampling.solver=heun", ["no effect", "--config.sampling.method=ode"]),
    ("sample WORKDIR --config.sampling.times=karras(steps=3) --config.sampling.steps=7", ["says it already"]),
    ("sample WORKDIR --config.training.batch_size=2", ["no effect", "train", "--config.sampling.batch_size"]),
    ("sample WORKDIR --config.training.n_iters=2", ["no effect", "sde-score train"]),
    ("sample WORKDIR --config.likelihood.trace=exact", ["no effect", "sde-score likelihood"]),
    ("likelihood WORKDIR --config.sampling.steps=2", ["no effect", "sde-score sample"]),
    ("evaluate WORKDIR --config.training.snapshot_freq=2", ["no effect", "sde-score train"]),
    ("report WORKDIR --config.sampling.steps=2", ["no effect", "sde-score sample"]),
    ("sample WORKDIR --labels=1,2", ["not class-conditional"]),
    ("train TRAIN --config.sampling.solver=heun", ["no effect", "--config.sampling.method=ode"]),
    ("train TRAIN --config.data.holdout=0.2", ["no effect", "'digits'"]),
    ("train TRAIN --config.data.on_error=skip", ["no effect", "'digits'"]),
    ("train TRAIN --config.data.image_size=16", ["8x8", "image_size=16"]),
    ("train TRAIN --config.optim.warmup=0 --config.optim.published_warmup=True", ["no effect", "warmup=STEPS"]),
    ("train TRAIN --config.training.condition_dropout=0.1", ["class_conditional=True"]),
    # contradictions with a run
    ("sample WORKDIR --config.seed=5", ["config.seed is 0 there, 5 asked for", "--seed=N"]),
    ("train WORKDIR --config.sde=ve", ["'vp' there", "'ve' asked for", "--overwrite"]),
    # exports
    ("export WORKDIR --to=x.pth", ["no original counterpart", ".safetensors"]),
    ("export WORKDIR --to=x.onnx", ["'x.onnx'", ".safetensors", ".pth"]),
    ("export WORKDIR --output=x.pth", ["--to=x.pth"]),
    # the command config
    ("config shwo", ["config show"]),
    ("config diff digits", ["config diff A B"]),
    ("config diff digits digitz", ["Did you mean 'digits'"]),
    ("config keys learningrate", ["--config.optim.lr"]),
    ("config show --config=digits smapling", ["Did you mean 'sampling'"]),
]


@pytest.mark.parametrize("line, words", MISTAKEN, ids=[row[0] for row in MISTAKEN])
def test_the_answer_says_what_to_write(refused, digits_config, digits_run, tmp_path, monkeypatch, line, words):
    monkeypatch.chdir(tmp_path)
    new = [f"--config={digits_config}", f"--workdir={tmp_path}/run"]
    places = {"TRAIN": new, "WORKDIR": [f"--workdir={digits_run}"]}
    argv = [word for part in line.split(" ") for word in places.get(part, [part])]
    message = refused(*argv, code=2, words=words, lines=2)
    assert len(message) < 1500 and "  (--traceback" not in message
    assert not (tmp_path / "run/config.json").exists() and not (tmp_path / "x").exists(), "nothing has begun"


def test_the_table_is_long_enough_and_says_nothing_twice():
    lines = [row[0] for row in MISTAKEN]
    assert len(lines) == len(set(lines)) >= 60


def test_the_work_failed(refused, digits_run, tmp_path):
    refused("sample", f"--workdir={tmp_path}/none", code=1, words=["not a run directory"])
    refused("sample", f"--workdir={digits_run}", "--checkpoint=none.pt", code=1, words=["none.pt"])


def test_interrupted(cli, digits_run, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    import sde_score.run  # noqa: F401

    monkeypatch.setattr(sys.modules["sde_score.run.sample"], "draw", interrupt)
    answer = cli("sample", f"--workdir={digits_run}", "--num=1")
    assert answer.code == 130 and answer.err.splitlines()[-1] == "sde-score sample: interrupted"


def test_what_repeats_the_run_or_serves_another_command_harms_nobody(cli, digits_config, digits_run, tmp_path):
    run = shutil.copytree(digits_run, tmp_path / "run")
    same = ("--config.training.n_iters=20", "--config.optim.lr=1e-3", "--config.sde=vp")
    assert cli("sample", f"--workdir={run}", "--num=2", *same, "--config.sampling.steps=3").code == 0
    ahead = ("--config.sampling.steps=3", "--config.likelihood.trace=exact", "--config.optim.grad_clip=0")
    flags = (f"--config={digits_config}", f"--workdir={tmp_path}/new", "--config.training.n_iters=1")
    assert cli("train", *flags, *ahead).code == 0


def test_flag_files(cli, digits_config, tmp_path):
    """With a configuration and its keys, comments, and another file inside."""
    (tmp_path / "inner.txt").write_text("--config.training.n_iters=2\n\n// of the optimiser\n--config.optim.lr=0.5\n")
    lines = ["# a small run", f"--config={digits_config}", f"--flagfile={tmp_path}/inner.txt"]
    (tmp_path / "outer.txt").write_text("\n".join([*lines, "--config.sde=vp(beta_min=0.2)", "--json"]))
    found = cli("train", f"--flagfile={tmp_path}/outer.txt", f"--workdir={tmp_path}/run").json
    assert found["step"] == 2
    shown = cli("config", "show", f"--workdir={tmp_path}/run", "--json").json
    assert shown["optim.lr"] == 0.5 and shown["sde"] == "vp(beta_min=0.2)"
    assert cli("sample", "--flagfile", tmp_path / "none.txt").code == 2


def test_every_flag_of_a_command_is_in_the_list_of_those_that_have_it(capsys):
    """So that it can be named where another command is given it."""
    from sde_score import words
    from sde_score.cli import COMMANDS, main

    found: dict[str, set[str]] = {}
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        for row in capsys.readouterr().out.splitlines():
            if row.startswith("  --") and not row.startswith(("  --config.", "  --flagfile")):
                found.setdefault(row.split("=")[0].split()[0].removeprefix("--"), set()).add(command)
    for name in ("json", "traceback", "help"):
        assert found.pop(name) == set(COMMANDS)
    assert {flag: set(commands) for flag, commands in words.OF_COMMANDS.items()} == found
