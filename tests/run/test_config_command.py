"""`sde-score config`: what a configuration says, where two differ, what there is to set."""

import json
import subprocess
import sys

from sde_score.config import default_config, flat, read_run
from sde_score.keys import KEYS


def test_show(cli, digits_run):
    assert cli("config", "show", "--json").json == json.loads(json.dumps(flat(default_config())))
    assert cli("config", "show", f"--workdir={digits_run}", "--json").json["training.n_iters"] == 20
    section = cli("config", "show", "--config=digits", "optim", "--config.optim.lr=0.5", "--json").json
    assert section.keys() == {key for key in KEYS if key.startswith("optim.")} and section["optim.lr"] == 0.5
    words = cli("config", "show", f"--workdir={digits_run}", "training.n_iters").out.split()
    assert words == ["training.n_iters", "20", "(default", "100000)"]
    keys = [line.split()[0] for line in cli("config", "show").out.splitlines()]
    assert keys == list(KEYS)


def test_diff(cli, digits_config, digits_run):
    assert cli("config", "diff", digits_config, digits_run).out.strip() == "no difference"
    found = cli("config", "diff", "digits:vp", "digits:ve", "--json").json
    assert found.keys() == {"sde"} and found["sde"]["a"].startswith("vp(") and found["sde"]["b"].startswith("ve(")
    found = cli("config", "diff", digits_run, "toy2d", "--json").json
    assert found["data.name"] == {"a": "digits", "b": "two_moons"} and "sampling.method" not in found
    assert read_run(digits_run).training.batch_size == found["training.batch_size"]["a"]


def test_keys(cli):
    everything = cli("config", "keys", "--json").json
    assert everything.keys() == KEYS.keys()
    assert everything["optim.lr"] | {"meaning": ""} == {
        "type": "float", "default": 2e-4, "allowed": "above 0", "meaning": ""
    }  # fmt: skip
    assert cli("config", "keys", "*.lr", "ema", "--json").json.keys() == {
        "optim.lr", "model.ema_rate", "model.ema_ramp"
    }  # fmt: skip
    assert "'float32' or 'bf16'" in cli("config", "keys", "config.training.precision").out
    assert "sde-score list solvers" in cli("config", "keys", "likelihood.solver").out


def test_all_of_it_without_torch():
    code = (
        "import sys\n"
        "from sde_score.cli import main\n"
        "for line in ('show --config=digits', 'diff digits published', 'keys', 'keys nothing'):\n"
        "    main(['config', *line.split()])\n"
        "main(['train', '--config=digits', '--workdir=x', '--lr=1'])\n"
        "assert 'torch' not in sys.modules\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
