"""The 39 published configurations, as a table of differences over common parts, in plain values.

Names are those of the original release (score_sde_pytorch), and so are most keys. `PUBLISHED[name]` holds everything
that a configuration says, with the published results under "results": FID and inception score of the best checkpoint;
FID with the ODE sampler and bits per dimension of the last. These were measured by the authors with their code, not
with this one.

What differs from the original files, because these could not run or did not do what they say:
* ve/ncsn/celeba did not set the SDE: it is VE here. ve/ncsnv2/bedroom misspelt `continuous`: it is discrete here.
* The two 1024-pixel files lack the evaluation section: they have the common one here.
* vp/ddpm/celebahq pointed to the 1024-pixel records: here the data set is CelebA-HQ at 256 pixels.
* NCSN, NCSNv2 and the unconditional DDPM could not be built; the corrector-only samplers of the former never removed
  the final noise although they asked for it.
* DDPM files carry `embedding_type = fourier`, which that network never reads: its embedding is positional.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Every key that a configuration has, with its commonest value. Keys of the network follow in the parts below.
BASE: dict[str, Any] = dict(
    # process; num_scales is also the number of sampling steps
    sde="ve", sigma_min=0.01, sigma_max=50.0, beta_min=0.1, beta_max=20.0, num_scales=1000, continuous=True,
    # data
    dataset="cifar10", category=None, image_size=32, channels=3, centered=False, random_flip=True,
    uniform_dequantization=False,
    # training
    batch_size=128, n_iters=1_300_001, reduce_mean=False, likelihood_weighting=False, ema_rate=0.999,
    log_freq=50, eval_freq=100, snapshot_freq=50_000, preemption_freq=10_000,
    # optimiser: Adam; grad_clip < 0 means none
    lr=2e-4, beta1=0.9, eps=1e-8, weight_decay=0.0, warmup=5000, grad_clip=1.0,
    # sampling
    predictor="reverse_diffusion", corrector="langevin", snr=0.16, n_steps=1, noise_removal=True,
    # evaluation
    eval_batch_size=1024, begin_ckpt=9, end_ckpt=26, num_samples=50_000, bpd_dataset="test",
    seed=42, results={},
)  # fmt: skip

# --- networks --------------------------------------------------------------------------------------------------------
UNET = dict(nf=128, ch_mult=(1, 2, 2, 2), num_res_blocks=2, attn_resolutions=(16,), dropout=0.1, nonlinearity="swish",
            resamp_with_conv=True, conditional=True, scale_by_sigma=False, embedding_type="positional")  # fmt: skip
DDPM = UNET | dict(model="ddpm")
NCSNPP = UNET | dict(model="ncsnpp", num_res_blocks=4, fir=True, fir_kernel=(1, 3, 3, 1), skip_rescale=True,
                     resblock_type="biggan", progressive="none", progressive_input="residual",
                     progressive_combine="sum", init_scale=0.0, fourier_scale=16)  # fmt: skip
DDPMPP = NCSNPP | dict(fir=False, progressive_input="none")
NCSNPP_VE = NCSNPP | dict(embedding_type="fourier", scale_by_sigma=True)
DEEP = dict(num_res_blocks=8, n_iters=950_001)
REFINENET = dict(nf=128, nonlinearity="elu", dropout=0.1, scale_by_sigma=False)
NCSN = REFINENET | dict(model="ncsn")
NCSNV2 = REFINENET | dict(model="ncsnv2_64", scale_by_sigma=True)

# --- processes -------------------------------------------------------------------------------------------------------
DISCRETE = dict(continuous=False)
VE_DISCRETE = DISCRETE | dict(embedding_type="positional")
VP = dict(sde="vp", centered=True, reduce_mean=True, ema_rate=0.9999, predictor="euler_maruyama", corrector="none")
SUBVP = VP | dict(sde="subvp")
VP_DISCRETE = VP | DISCRETE | dict(predictor="ancestral_sampling")

# --- data ------------------------------------------------------------------------------------------------------------
CELEBA = dict(dataset="celeba", image_size=64, begin_ckpt=1)
LSUN_256 = dict(image_size=256, batch_size=64, n_iters=2_400_001, preemption_freq=5000, snr=0.075, dropout=0.0,
                eval_batch_size=512, begin_ckpt=50, end_ckpt=96)  # fmt: skip
BEDROOM = LSUN_256 | dict(dataset="lsun", category="bedroom")
CHURCH = LSUN_256 | dict(dataset="lsun", category="church_outdoor")
NCSNPP_256 = NCSNPP_VE | dict(ch_mult=(1, 1, 2, 2, 2, 2, 2), num_res_blocks=2, progressive="output_skip",
                              progressive_input="input_skip", num_scales=2000)  # fmt: skip
NCSNPP_1024 = NCSNPP_256 | dict(nf=16, ch_mult=(1, 2, 4, 8, 16, 32, 32, 32), num_res_blocks=1, dropout=0.0,
                                image_size=1024, sigma_max=1348.0, batch_size=8, n_iters=2_400_001, ema_rate=0.9999,
                                snr=0.15, preemption_freq=5000, begin_ckpt=1, end_ckpt=96)  # fmt: skip
DDPM_256 = DDPM | dict(ch_mult=(1, 1, 2, 2, 4, 4), lr=2e-5)

# --- annealed Langevin dynamics (the names 1, 2, 4, 5 count the techniques of NCSNv2) --------------------------------
ALD = DISCRETE | dict(predictor="none", corrector="ald", warmup=0, grad_clip=-1.0)
NCSN_V1 = NCSN | ALD | dict(lr=1e-3, num_scales=10, sigma_max=1.0, snr=0.316, n_steps=100, ema_rate=0.0)
EMA_5 = dict(ema_rate=0.999)
CIFAR10_124 = dict(num_scales=232, sigma_max=50.0, snr=0.176, n_steps=5)
CELEBA_124 = dict(num_scales=500, sigma_max=90.0, snr=0.128, n_steps=5)
NCSN_V2 = NCSNV2 | ALD | dict(lr=1e-4)


def _results(fid=None, inception_score=None, fid_ode=None, bpd=None) -> dict[str, Any]:
    """Results published by the authors; numbers of their code, not of ours."""
    numbers = dict(fid=fid, inception_score=inception_score, fid_ode=fid_ode, bpd=bpd)
    return dict(results={key: value for key, value in numbers.items() if value is not None})


# name -> the parts laid over BASE, later ones winning
_PARTS: dict[str, tuple[dict[str, Any], ...]] = {
    "subvp/cifar10_ddpm_continuous": (DDPM, SUBVP, _results(fid_ode=3.56, bpd=3.05)),
    "subvp/cifar10_ddpmpp_continuous": (DDPMPP, SUBVP, _results(2.61, 9.56, 3.16, 3.02)),
    "subvp/cifar10_ddpmpp_deep_continuous": (DDPMPP, SUBVP, DEEP, _results(2.41, 9.57, 2.92, 2.99)),
    "subvp/cifar10_ncsnpp_continuous": (NCSNPP, SUBVP),
    "subvp/cifar10_ncsnpp_deep_continuous": (NCSNPP, SUBVP, DEEP),
    "ve/bedroom_ncsnpp_continuous": (NCSNPP_256, BEDROOM, dict(sigma_max=378.0)),
    "ve/celeba_ncsnpp": (NCSNPP_VE, VE_DISCRETE, CELEBA, dict(sigma_max=90.0, snr=0.17)),
    "ve/celebahq_256_ncsnpp_continuous": (NCSNPP_256, LSUN_256, dict(dataset="celebahq", sigma_max=348.0)),
    "ve/celebahq_ncsnpp_continuous": (NCSNPP_1024, dict(dataset="celebahq")),
    "ve/church_ncsnpp_continuous": (NCSNPP_256, CHURCH, dict(sigma_max=380.0)),
    "ve/cifar10_ddpm": (DDPM, VE_DISCRETE, dict(scale_by_sigma=True)),
    "ve/cifar10_ncsnpp": (NCSNPP_VE, VE_DISCRETE, _results(2.45, 9.73)),
    "ve/cifar10_ncsnpp_continuous": (NCSNPP_VE, _results(2.38, 9.83)),
    "ve/cifar10_ncsnpp_deep_continuous": (NCSNPP_VE, DEEP, _results(2.20, 9.89)),
    "ve/ffhq_256_ncsnpp_continuous": (NCSNPP_256, LSUN_256, dict(dataset="ffhq", sigma_max=348.0)),
    "ve/ffhq_ncsnpp_continuous": (NCSNPP_1024, dict(dataset="ffhq", reduce_mean=True)),
    "ve/ncsn/celeba": (NCSN_V1, CELEBA),
    "ve/ncsn/celeba_124": (NCSN_V1, CELEBA, CELEBA_124),
    "ve/ncsn/celeba_1245": (NCSN_V1, CELEBA, CELEBA_124, EMA_5),
    "ve/ncsn/celeba_5": (NCSN_V1, CELEBA, EMA_5),
    "ve/ncsn/cifar10": (NCSN_V1,),
    "ve/ncsn/cifar10_124": (NCSN_V1, CIFAR10_124),
    "ve/ncsn/cifar10_1245": (NCSN_V1, CIFAR10_124, EMA_5),
    "ve/ncsn/cifar10_5": (NCSN_V1, EMA_5),
    "ve/ncsnv2/bedroom": (
        NCSN_V2,
        BEDROOM,
        dict(model="ncsnv2_128", image_size=128, num_scales=1086, sigma_max=190.0, snr=0.095, n_steps=3),
        dict(batch_size=128, ema_rate=0.9999),
    ),
    "ve/ncsnv2/celeba": (NCSN_V2, CELEBA, CELEBA_124),
    "ve/ncsnv2/cifar10": (NCSN_V2, CIFAR10_124),
    "vp/cifar10_ddpmpp": (DDPMPP, VP_DISCRETE, _results(2.78, 9.64)),
    "vp/cifar10_ddpmpp_continuous": (DDPMPP, VP, _results(2.55, 9.58, 3.93, 3.16)),
    "vp/cifar10_ddpmpp_deep_continuous": (DDPMPP, VP, DEEP, _results(2.41, 9.68, 3.08, 3.13)),
    "vp/cifar10_ncsnpp": (NCSNPP, VP_DISCRETE, dict(predictor="reverse_diffusion")),
    "vp/cifar10_ncsnpp_continuous": (NCSNPP, VP),
    "vp/cifar10_ncsnpp_deep_continuous": (NCSNPP, VP, DEEP),
    "vp/ddpm/bedroom": (DDPM_256, VP_DISCRETE, BEDROOM),
    "vp/ddpm/celebahq": (DDPM_256, VP_DISCRETE, LSUN_256, dict(dataset="celebahq")),
    "vp/ddpm/church": (DDPM_256, VP_DISCRETE, CHURCH),
    "vp/ddpm/cifar10": (DDPM, VP_DISCRETE, _results(fid=3.24, fid_ode=3.37, bpd=3.28)),
    "vp/ddpm/cifar10_continuous": (DDPM, VP, _results(fid_ode=3.69, bpd=3.21)),
    "vp/ddpm/cifar10_unconditional": (DDPM, VP_DISCRETE, dict(conditional=False)),
}


def _merge(parts: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    facts = dict(BASE)
    for part in parts:
        facts.update(part)
    return facts


PUBLISHED: dict[str, dict[str, Any]] = {name: _merge(parts) for name, parts in _PARTS.items()}


# --- in our terms ----------------------------------------------------------------------------------------------------


def network_arguments(facts: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Registered name and constructor arguments of the network that the facts describe."""
    model = facts["model"]
    if model == "ncsn" or model.startswith("ncsnv2"):
        keys = ("channels", "nf", "num_scales", "centered")
        arguments = {key: facts[key] for key in keys} | {"activation": facts["nonlinearity"], "num_classes": None}
        if model != "ncsn":
            arguments |= {key: facts[key] for key in ("sigma_max", "sigma_min", "spacing") if key in facts}
        return model, arguments
    keys = UNET_KEYS + (DDPM_KEYS if model == "ddpm" else NCSNPP_KEYS)
    return model, {key: facts[key] for key in keys if key in facts} | {"num_classes": None}


UNET_KEYS = ("channels", "image_size", "nf", "ch_mult", "num_res_blocks", "attn_resolutions", "dropout", "nonlinearity",
             "resamp_with_conv", "conditional", "scale_by_sigma", "num_scales", "sigma_max", "sigma_min",
             "centered")  # fmt: skip
DDPM_KEYS = ("up_attention",)
NCSNPP_KEYS = ("embedding_type", "fourier_scale", "fir", "fir_kernel", "skip_rescale", "resblock_type", "progressive",
               "progressive_input", "progressive_combine", "init_scale")  # fmt: skip


def network_spec(facts: Mapping[str, Any]) -> str:
    """The component spec of the network, such as "ncsnpp(nf=128, ...)".

    Channels, image size, scaling and classes are left to the data and the section `model`.
    """
    name, arguments = network_arguments(facts)
    for key in ("channels", "image_size", "centered", "num_classes"):
        arguments.pop(key, None)
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
