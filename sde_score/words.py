"""The field's words for what goes by another name here, and what to write instead. Imports nothing but the keys."""

from __future__ import annotations

import re

from sde_score.keys import KEYS, key_of_component

PC = "--config.sampling.method=pc --config.sampling.predictor="
ODE = "--config.sampling.method=ode --config.sampling.solver="
WEIGHT = "--config.training.objective=\"dsm(weighting='likelihood')\""
STEPS = "--config.training.n_iters=STEPS (an epoch is the number of training samples over the batch size)"
NO_FAST = f"{ODE}'heun(steps=25)' (there is no exponential integrator here)"
OWN_IMAGES = "--config=images --config.data.name=FOLDER"

def plainly(word: str) -> str:
    """A word without case and marks: 'Euler-Maruyama' and 'euler_maruyama' are one."""
    return re.sub(r"[\s_.-]+", "", word.lower())


# by kind of component, in plain letters: what to write
COMPONENTS: dict[str, dict[str, str]] = {
    "sdes": {
        "vpsde": "vp", "ddpm": "vp", "linear": "vp", "variancepreserving": "vp",
        "vesde": "ve", "smld": "ve", "ncsn": "ve", "varianceexploding": "ve",
        "subvpsde": "subvp", "karras": "edm", "edmsde": "edm", "improvedddpm": "cosine", "iddpm": "cosine",
    },
    "predictors": {
        "ddim": "ancestral_sampling(eta=0)", "ddpm": "ancestral_sampling", "ancestral": "ancestral_sampling",
        "smld": "ancestral_sampling", "euler": "euler_maruyama", "em": "euler_maruyama",
        "eulermaruyamapredictor": "euler_maruyama", "reversediffusionpredictor": "reverse_diffusion",
        "ancestralsamplingpredictor": "ancestral_sampling", "reverse": "reverse_diffusion",
        "nonepredictor": "none", "pndm": NO_FAST, "plms": NO_FAST, "dpmsolver": NO_FAST, "dpmsolver++": NO_FAST,
        "dpm++": NO_FAST, "dpm": NO_FAST, "unipc": NO_FAST, "deis": NO_FAST,
        "probabilityflow": f"{ODE}dopri5", "ode": f"{ODE}dopri5",
    },
    "correctors": {
        "langevincorrector": "langevin", "ula": "langevin", "langevindynamics": "langevin", "mcmc": "langevin",
        "annealedlangevin": "ald", "annealedlangevindynamics": "ald", "nonecorrector": "none",
    },
    "samplers": {
        "ddim": f"{PC}'ancestral_sampling(eta=0)'", "ddpm": f"{PC}ancestral_sampling", "em": f"{PC}euler_maruyama",
        "ancestral": f"{PC}ancestral_sampling", "eulera": f"{PC}euler_maruyama",
        "edm": f"{ODE}'heun(steps=50)'", "karras": f"{ODE}'heun(steps=50)'",
        "probabilityflow": "ode", "flow": "ode", "pfode": "ode", "rk45": f"{ODE}dopri5", "odesampler": "ode",
        "predictorcorrector": "pc", "pcsampler": "pc", "reversesde": "sde", "srk": "sde",
        "pndm": NO_FAST, "plms": NO_FAST, "dpmsolver": NO_FAST, "dpmsolver++": NO_FAST, "dpm++": NO_FAST,
        "dpm": NO_FAST, "unipc": NO_FAST, "deis": NO_FAST,
    },
    "solvers": {
        "rk45": "dopri5", "ode45": "dopri5", "dormandprince": "dopri5", "odeint": "dopri5",
        "rk23": "bosh3", "ode23": "bosh3", "bogackishampine": "bosh3", "rungekutta": "rk4", "rungekutta4": "rk4",
        "dop853": "scipy(method='DOP853')", "dopri8": "scipy(method='DOP853')", "lsoda": "scipy(method='LSODA')",
        "bdf": "scipy(method='BDF')", "radau": "scipy(method='Radau')", "solveivp": "scipy",
        "em": "euler", "heun2": "heun", "adamsbashforth": "adams", "multistep": "adams", "ddim": "euler",
        "dpmsolver": "adams(steps=20)", "dpmsolver++": "adams(steps=20)", "unipc": "adams(steps=20)",
    },
    "traces": {
        "skilling": "hutchinson", "skillinghutchinson": "hutchinson", "hutch": "hutchinson", "ffjord": "hutchinson",
        "rademacher": "hutchinson(kind='rademacher')", "gaussian": "hutchinson(kind='gaussian')",
        "brute": "exact", "bruteforce": "exact", "full": "exact", "jacobian": "exact", "autograd": "exact",
    },
    "times": {
        "linear": "uniform", "quadratic": "power(rho=2.)", "edm": "karras", "logsnr": "log_snr", "polynomial": "power",
    },
    "time_samplers": {"lognormal": "log_normal", "logitnormal": "log_normal", "is": "importance", "linear": "uniform"},
    "parameterizations": {
        "epsilon": "eps", "noise": "eps", "vprediction": "v", "velocity": "v", "sample": "x0", "xstart": "x0",
        "data": "x0", "karras": "edm", "preconditioned": "edm", "ncsn": "score",
    },
    "objectives": {
        "mse": "dsm", "l2": "dsm", "simple": "dsm", "scorematching": "dsm", "sm": "dsm", "epsilon": "dsm",
        "denoisingscorematching": "dsm", "ddpm": "discrete_dsm", "smld": "discrete_dsm",
        "elbo": "dsm(weighting='likelihood')", "nll": "dsm(weighting='likelihood')",
        "likelihood": "dsm(weighting='likelihood')", "edm": "dsm(weighting='edm', times='log_normal')",
    },
    "models": {
        "unet1d": "unet", "unet2d": "unet", "unet3d": "unet", "unet2dmodel": "unet", "resnet": "unet", "cnn": "unet",
        "conv": "unet", "ncsn++": "ncsnpp", "ddpm++": "ncsnpp(embedding_type='positional', fir=False)",
        "ddpmpp": "ncsnpp(embedding_type='positional', fir=False)", "adm": "unet", "fc": "mlp", "linear": "mlp",
        "ncsnv2": "ncsnv2_64", "dense": "mlp", "refinenet": "ncsnv2_64",
    },
    "datasets": {
        "cifar": "cifar10", "fashionmnist": "fashion_mnist", "moons": "two_moons", "gmm": "mixture_grid",
        "swissroll": "swiss_roll", "imagefolder": "the folder itself, ./my_images", "csv": "the file itself",
        **dict.fromkeys(("celebahq", "ffhq", "imagenet", "cifar100"), "the folder of its images"),
    },
    "codecs": {"standard": "scaler", "standardscaler": "scaler", "normalize": "scaler", "identity": "scaler"},
    "features": {"fid": "inception", "inceptionv3": "inception", "raw": "pixels", "randomconv": "random_conv"},
    "metrics": {
        "fid": "fd (with --config.evaluation.features=inception it is the FID)", "is": "inception_score",
        "frechet": "fd", "precision": "prdc", "recall": "prdc", "precisionrecall": "prdc", "swd": "sliced_wasserstein",
        "wasserstein": "sliced_wasserstein", "coverage": "prdc", "density": "prdc", "memorization": "copy_rate",
    },
}  # fmt: skip

# flags and keys, in plain letters: what to write, or that by command ("" for the others)
FLAGS: dict[str, str | dict[str, str]] = {
    **dict.fromkeys(("epochs", "nepochs", "numepochs", "maxepochs", "numtrainepochs"), STEPS),
    **dict.fromkeys(
        ("niter", "iters", "iterations", "niterations", "numiterations", "maxsteps", "maxiters", "trainsteps",
         "numtrainsteps", "trainingsteps", "maxtrainsteps", "nsteps", "numsteps", "steps"),
        {"train": "--config.training.n_iters=STEPS", "": "--config.sampling.steps=STEPS"},
    ),
    **dict.fromkeys(
        ("numsamples", "nsamples", "n", "samples", "count", "number", "numimages", "nimages"),
        {"evaluate": "--config.evaluation.num_samples=N", "train": "--config.training.snapshot_samples=N",
         "": "--num=N"},
    ),
    **dict.fromkeys(("batchsize", "bs", "batch"), {
        "train": "--config.training.batch_size=N", "likelihood": "--config.likelihood.batch_size=N",
        "": "--config.sampling.batch_size=N"}),
    **dict.fromkeys(("learningrate",), "--config.optim.lr=RATE"),
    **dict.fromkeys(("emadecay", "ema"), "--config.model.ema_rate=RATE"),
    **dict.fromkeys(("gpu", "gpus", "cuda", "usecuda", "accelerator", "mps"),
                    "--config.device=cuda (several: torchrun --nproc_per_node=N -m sde_score -- train ...)"),
    **dict.fromkeys(("numgpus", "ngpus", "nprocpernode", "distributed", "ddp"),
                    "torchrun --nproc_per_node=N -m sde_score -- train ..."),
    "cpu": "--config.device=cpu",
    **dict.fromkeys(("seed", "randomseed", "manualseed"), {
        "sample": "--seed=N", "likelihood": "--seed=N", "evaluate": "--seed=N", "": "--config.seed=N"}),
    **dict.fromkeys(("output", "out", "o", "save", "outdir", "outputdir", "savedir", "savepath", "outputpath"), {
        "train": "--workdir=DIR", "quickstart": "--workdir=DIR", "import": "--workdir=DIR", "export": "--to=FILE",
        "": "--tag=NAME (the files lie in samples/ of the run directory)"}),
    **dict.fromkeys(("logdir", "rundir", "expdir", "dir", "run", "resultsdir", "modeldir", "folder"), "--workdir=DIR"),
    **dict.fromkeys(("resume", "continue", "resumefrom", "restart"),
                    "the same command again: it goes on where the run in --workdir stopped"),
    **dict.fromkeys(("force", "clean", "fresh"), {"train": "--overwrite", "": ""}),
    **dict.fromkeys(("ckpt", "ckptpath", "weights", "modelpath", "checkpointpath", "pretrained"), "--checkpoint=FILE"),
    **dict.fromkeys(("label", "class", "classes", "classlabel", "classlabels", "y", "cls"), "--labels=0,1"),
    **dict.fromkeys(("dataset", "datapath", "datadir", "dataroot", "trainpath", "datasetpath", "images"),
                    "--config.data.name=NAME_OR_PATH"),
    **dict.fromkeys(("resolution", "size", "imgsize", "imagesize"), "--config.data.image_size=N"),
    **dict.fromkeys(("model", "network", "arch", "architecture", "backbone"), "--config.model.name=NAME"),
    **dict.fromkeys(("sampler", "samplingmethod"), "--config.sampling.method=NAME"),
    **dict.fromkeys(("fp16", "amp", "bf16", "halfprecision", "mixedprecision"), "--config.training.precision=bf16"),
    **dict.fromkeys(("numworkers", "workers", "nworkers"), "--config.data.workers=N"),
    **dict.fromkeys(("verbose", "debug", "v"), "--traceback, which shows where an error arose"),
    **dict.fromkeys(("configfile", "cfg", "conf", "c", "preset"), "--config=NAME_OR_FILE"),
    **dict.fromkeys(("loss", "lossfn", "losstype"), "--config.training.objective=NAME"),
    **dict.fromkeys(("likelihoodweighting",), WEIGHT),
    **dict.fromkeys(("optimizer", "optimiser"), "--config.optim.name=NAME"),
    **dict.fromkeys(("clip", "gradclipping", "clipgrad", "maxgradnorm", "gradientclipping"),
                    "--config.optim.grad_clip=NORM"),
    **dict.fromkeys(("warmupsteps", "lrwarmup", "numwarmupsteps"), "--config.optim.warmup=STEPS"),
    **dict.fromkeys(("lrschedule", "scheduler", "lrscheduler"), "--config.optim.schedule=cosine"),
    **dict.fromkeys(("minutes", "hours", "maxtime", "maxminutes", "maxhours", "timelimit"),
                    "--config.training.max_seconds=SECONDS"),
    **dict.fromkeys(("saveevery", "saveinterval", "savefreq", "saveperiod"), "--config.training.checkpoint_freq=STEPS"),
    **dict.fromkeys(("sampleevery", "sampleinterval", "samplefreq"), "--config.training.snapshot_freq=STEPS"),
    **dict.fromkeys(("logevery", "loginterval"), "--config.training.log_freq=STEPS"),
    **dict.fromkeys(("evalevery", "evalinterval", "valinterval"), "--config.training.eval_freq=STEPS"),
    **dict.fromkeys(("valsplit", "testsplit", "testsize", "testshare"), "--config.data.holdout=SHARE"),
    **dict.fromkeys(("fid", "metric", "metrics"), "--config.evaluation.metrics=\"('fd', 'prdc')\""),
    **dict.fromkeys(("conditional", "classcond", "classconditional"), "--config.model.class_conditional=True"),
    **dict.fromkeys(("cfg_dropout", "labeldropout", "uncondprob", "puncond", "conddrop"),
                    "--config.training.condition_dropout=0.1"),
    **dict.fromkeys(("flip", "hflip", "horizontalflip", "randomhorizontalflip"), "--config.data.random_flip=True"),
    **dict.fromkeys(("gradaccum", "gradaccumulation", "accumulate", "gradientaccumulationsteps"),
                    "--config.training.micro_batches=N"),
    "wandb": "nothing: numbers go to metrics.jsonl and TensorBoard",
    # arguments of components
    **dict.fromkeys(("snr", "targetsnr"), '--config.sampling.corrector="langevin(snr=0.16)"'),
    "correctorsteps": '--config.sampling.corrector="langevin(n_steps=1)"',
    **dict.fromkeys(("eta", "ddimeta"), '--config.sampling.predictor="ancestral_sampling(eta=0)"'),
    **dict.fromkeys(("betamin", "betamax"), '--config.sde="vp(beta_min=0.1, beta_max=20.)"'),
    **dict.fromkeys(("sigmamin", "sigmamax"), '--config.sde="ve(sigma_min=0.01, sigma_max=50.)"'),
    "numscales": "--config.sampling.steps=N (the SDEs are continuous)",
    **dict.fromkeys(("rtol", "atol", "tol", "tolerance"), {
        "likelihood": '--config.likelihood.solver="dopri5(rtol=1e-5, atol=1e-5)"',
        "": '--config.sampling.solver="dopri5(rtol=1e-5, atol=1e-5)"'}),
    **dict.fromkeys(("probes", "hutchinsontype", "nprobes"), '--config.likelihood.trace="hutchinson(probes=1)"'),
    "rho": '--config.sampling.times="karras(rho=7.)"',
    **dict.fromkeys(("sigmadata",), '--config.model.parameterization="edm(sigma_data=0.5)"'),
    **dict.fromkeys(("weighting",), WEIGHT),
    **dict.fromkeys(("width", "dropout", "nf", "channelmult", "chmult", "numresblocks", "numchannels", "mult",
                     "attnresolutions", "blocks"), '--config.model.name="unet(width=32, dropout=0.1)"'),
    **dict.fromkeys(("noiseremoval", "denoising"), "--config.sampling.denoise=none"),
}  # fmt: skip

# flags, and the commands that have them
OF_COMMANDS: dict[str, tuple[str, ...]] = {
    "workdir": ("train", "sample", "likelihood", "evaluate", "report", "import", "export", "quickstart", "config"),
    "checkpoint": ("sample", "likelihood", "evaluate", "report", "import", "export"),
    "ema": ("sample", "likelihood", "evaluate", "report"),
    "num": ("sample", "likelihood"), "seed": ("sample", "likelihood", "evaluate"), "labels": ("sample",),
    "tag": ("sample",), "trajectory": ("sample",), "split": ("likelihood",), "repeats": ("likelihood",),
    "movie": ("sample",), "frames": ("sample",), "per_sample": ("likelihood",), "samples": ("evaluate",),
    "picture": ("data",), "overwrite": ("train",), "data": ("train", "data"), "minutes": ("train", "data"),
    "published": ("import",), "to": ("export",),
    "skip": ("check",), "sde": ("check",),
    "plugin": ("train", "sample", "likelihood", "evaluate", "report", "data", "export", "list", "check"),
    "config": ("train", "sample", "likelihood", "evaluate", "report", "data", "config"),
}  # fmt: skip

COMMANDS: dict[str, str] = {
    **dict.fromkeys(("fit", "resume", "continue", "run", "trainer", "learn", "finetune"), "train"),
    **dict.fromkeys(("generate", "draw", "synthesize", "synthesise", "sampling", "samples", "inference"), "sample"),
    **dict.fromkeys(("test", "eval", "fid", "metrics", "score", "validate", "benchmark", "compare"), "evaluate"),
    **dict.fromkeys(("nll", "bpd", "loglik", "density", "logprob", "logp", "loglikelihood"), "likelihood"),
    **dict.fromkeys(("plot", "show", "view", "visualize", "summary"), "report"),
    **dict.fromkeys(("components", "ls", "models", "sdes", "registry"), "list"),
    **dict.fromkeys(("verify", "prove", "conformance"), "check"),
    **dict.fromkeys(("convert", "load"), "import"),
    **dict.fromkeys(("save", "dump"), "export"),
    **dict.fromkeys(("demo", "start", "tutorial", "example", "init"), "quickstart"),
    **dict.fromkeys(("configs", "keys", "settings", "options", "params", "diff"), "config"),
}
CONFIGS: dict[str, str] = {
    **{name: f"--config=images --config.data.name={name}" for name in ("celeba", "svhn", "lsun")},
    **{plainly(name): f"--config=toy2d --config.data.name={name}"
       for name in ("two_moons", "swiss_roll", "checkerboard", "mixture_grid")},
    **dict.fromkeys(("fashionmnist",), "--config=mnist --config.data.name=fashion_mnist"),
    **{name: f"--config=digits:{name}" for name in ("vp", "ve", "subvp")},
    **dict.fromkeys(("cifar", "cifar100"), "--config=cifar10"),
    **dict.fromkeys(("toy", "2d"), "--config=toy2d"),
    **dict.fromkeys(("ffhq", "celebahq", "imagenet", "folder", "photos", "pictures", "custom"), OWN_IMAGES),
    **dict.fromkeys(("array", "npy", "csv"), "--config=images --config.data.name=FILE"),
}


def for_component(kind: str, name: str) -> str | None:
    """What to write for the field's word `name` where a component of a kind (as `sdes`) is asked for."""
    return COMPONENTS.get(kind, {}).get(plainly(name))


def as_flag(kind: str, name: str) -> str | None:
    """How a component of a kind is asked for: `--config.sampling.corrector=langevin`."""
    if kind in ("solvers", "predictors"):
        return (ODE if kind == "solvers" else PC) + name
    key = key_of_component(kind)
    return f"--config.{key}={name}" if key else None


def for_flag(word: str, command: str, value: str = "") -> str | None:
    """What to write for a flag or key that there is none of: the field's word for one, or a key with that last part.

    Of several keys with one last part the command's own is meant. `value` is put in.
    """
    if word in KEYS:
        return f"--config.{word}={value or 'VALUE'}"
    name = plainly(word.rpartition(".")[2])
    found = FLAGS.get(name)
    if isinstance(found, dict):
        found = found.get(command, found[""])
    if found:
        return re.sub("=[A-Z_]+$", f"={value}", found) if value else found
    own = {"train": "training", "sample": "sampling", "evaluate": "evaluation"}.get(command, command)
    same = [key for key in KEYS if plainly(key.rpartition(".")[2]) == name]
    same = [key for key in same if key.startswith(f"{own}.")] or same
    return " or ".join(f"--config.{key}={value or 'VALUE'}" for key in same) or None
