"""MNIST, 28x28 grey (downloaded by torchvision, or found under `--config.data.root`).

sde-score train --config=mnist:vp --workdir=runs/mnist

Cost: 1.0 to 1.3 s a step (batch 128) on two CPU cores. Reached: not run to the end here, for want of a GPU; 129 steps
in 171 s (vp, warm-up 20, cosine to 140) gave 3.62 ± 0.05 bits/dim on 50 test images, which is barely begun.
"""

from sde_score.configs.common import make_config, spec_of


def get_config(sde: str = "vp"):
    """`sde`: ve, vp or subvp, or any other SDE spec."""
    return make_config(
        sde=spec_of(sde, ve="ve(sigma_min=0.01, sigma_max=28.)", vp="vp(t_min=1e-4)", subvp="subvp(t_min=1e-3)"),
        data={"name": "mnist"},
        model={
            "name": "unet(width=32, mult=(1, 2, 2), attention=(2,))",
            "parameterization": "edm(sigma_data=0.6)",
            "ema_rate": 0.9995,
        },
        training={
            "objective": "dsm(times='mixed(share=0.5)')",
            "batch_size": 128,
            "n_iters": 20_000,
            "log_freq": 100,
            "eval_freq": 2000,
            "snapshot_freq": 2000,
            "checkpoint_freq": 1000,
        },
        optim={"lr": 1e-3, "warmup": 500, "schedule": "cosine"},
        sampling={
            "predictor": "reverse_diffusion",
            "corrector": "langevin(snr=0.16, norms='expected')",
            "steps": 200,
            "times": "power(rho=2.)",
        },
    )
