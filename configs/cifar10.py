"""CIFAR-10, 32x32 RGB (downloaded by torchvision), with the published NCSN++/DDPM++ networks in continuous time.

sde-score train --config=cifar10:vp --workdir=runs/cifar10

Cost and result: not trained here. The published system of the same size took 0.56 s a step on four V100 (NCSN++ cont.,
VE), a week and more for 1.3 M steps; see configs/published.py for its configurations and published results.
"""

from sde_score.configs.common import make_config, spec_of


def get_config(sde: str = "vp"):
    """`sde`: ve, vp or subvp, or any other SDE spec."""
    network = "ncsnpp(nf=128, ch_mult=(1, 2, 2, 2), num_res_blocks=4, attn_resolutions=(16,), dropout=0.1"
    ve = sde.partition("(")[0] in ("ve", "edm")
    return make_config(
        sde=spec_of(sde, ve="ve(sigma_min=0.01, sigma_max=50.)"),
        data={"name": "cifar10", "random_flip": True, "centered": not ve},
        model={
            "name": network
            + (
                ", embedding_type='fourier', progressive_input='residual')"
                if ve
                else ", embedding_type='positional', fir=False)"
            ),
            "parameterization": "score(c_noise='sigma')" if ve else "eps(c_noise='999t', scale_input=False)",
            "ema_rate": 0.999 if ve else 0.9999,
        },
        training={
            "objective": "dsm",
            "batch_size": 128,
            "n_iters": 1_300_000,
            "log_freq": 50,
            "eval_freq": 5000,
            "snapshot_freq": 50_000,
            "checkpoint_freq": 10_000,
            "precision": "float32",
        },
        optim={"lr": 2e-4, "warmup": 5000, "grad_clip": 1.0},
        sampling={
            "predictor": "reverse_diffusion" if ve else "euler_maruyama",
            "corrector": "langevin(snr=0.16, norms='expected')" if ve else "none",
            "steps": 1000,
            "batch_size": 128,
        },
    )
