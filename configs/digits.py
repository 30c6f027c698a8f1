"""scikit-learn's 8x8 digits (embedded): the quick start.

    sde-score train --config=digits:vp --workdir=runs/digits
"""

from configs_common import choose, make_config


def get_config(sde: str = "vp"):
    return make_config()
