"""A configuration says what it cannot be: the file, the key, the value, and what it must be; before any work."""

import json
import math
import shutil

import pytest
from ml_collections import ConfigDict

from sde_score.config import default_config, from_json, make_config, read_run, to_json
from sde_score.keys import KEYS as FACTS


def keys(section: ConfigDict, prefix: str = ""):
    for key in section:
        if isinstance(section[key], ConfigDict):
            yield from keys(section[key], f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", section.get_type(key)


KEYS = dict(keys(default_config()))
NUMBERS = [key for key, kind in KEYS.items() if kind in (int, float)]


def with_value(key: str, value) -> dict:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def test_every_number_has_a_range_and_every_key_a_meaning():
    assert all(FACTS[key].limits for key in NUMBERS)
    assert sorted(FACTS) == sorted(KEYS) and all(facts.meaning for facts in FACTS.values())
    for key, facts in FACTS.items():  # defaults may be given as well
        if not isinstance(facts.default, type):
            make_config(**with_value(key, facts.default))


def test_an_image_size_is_a_number_or_a_pair():
    for size in (20, (20, 28), [20, 28]):
        config = make_config(data={"image_size": size})
        assert config.data.image_size == (20 if size == 20 else (20, 28))
        assert from_json(to_json(config)).data.image_size == config.data.image_size
    for wrong in (0, True, 2.5, "big", (20,), (20, 28, 3), (20, 0), (20, "28")):
        with pytest.raises(ValueError, match=r"config.data.image_size=.*whole number of at least 1, or two: \(height"):
            make_config(data={"image_size": wrong})


@pytest.mark.parametrize("key", NUMBERS)
def test_what_is_no_number_and_what_is_out_of_range(key):
    wrong = [True, "7", [1], math.nan, math.inf, -math.inf]
    allowed = FACTS[key].allowed
    wrong += [] if key == "optim.grad_clip" else [-1]
    wrong += [0] if "above 0" in allowed or "at least 1" in allowed else []
    wrong += [1] if "below 1" in allowed else []
    wrong += [2.5, 2**63] if KEYS[key] is int else []
    for value in wrong:
        for make in (lambda **s: make_config(**s), lambda **s: from_json(json.dumps(s), "runs/x/config.json")):
            with pytest.raises(ValueError, match=rf"config\.{key}=.* cannot be: it must be a (whole )?number"):
                make(**with_value(key, value))
    kept = from_json(json.dumps(with_value(key, 0.25 if "below 1" in allowed and KEYS[key] is float else 2)))
    assert from_json(to_json(kept)) == kept


WRONG = [
    ('{"model": 5}', "config.model is a section"),
    ('{"training": [1]}', "config.training is a section"),
    ('{"plugins": [3]}', r"config.plugins=\[3\] cannot be: it must be a tuple of texts"),
    ('{"plugins": "mine.py"}', "config.plugins='mine.py'"),
    ('{"evaluation": {"metrics": [null]}}', "config.evaluation.metrics"),
    ('{"sde": {"name": "vp"}}', "config.sde is one value, such as 'vp'"),
    ('{"sde": 3}', "config.sde=3 cannot be: it must be text"),
    ('{"data": {"centered": 1}}', "config.data.centered=1 cannot be: it must be True or False"),
    ('{"data": {"root": 7}}', "config.data.root=7"),
    ("[1]", "object of sections"),
    ("[" * 100_000, "recursion"),
    ('{"sde": "vp"', "Expecting"),
]


@pytest.mark.parametrize("text, words", WRONG, ids=[text[:30] for text, _ in WRONG])
def test_what_json_may_hold(text, words):
    with pytest.raises(ValueError, match=rf"^runs/x/config.json: .*{words}"):
        from_json(text, "runs/x/config.json")


def test_whole_numbers_serve_as_numbers_and_own_keys_stay():
    config = from_json('{"optim": {"lr": 1}, "mine": {"tuple": [1, 2], "open": null}, "model": {"extra": 3}}')
    assert isinstance(config.optim.lr, float) and config.mine.tuple == (1, 2) and config.model.extra == 3


def test_a_run_names_its_file(tmp_path):
    path = tmp_path / "config.json"
    good = default_config().to_dict()
    path.write_text(json.dumps(good | {"training": {"batch_size": True}}))
    with pytest.raises(ValueError, match=rf"^{path}: config.training.batch_size=True"):
        read_run(tmp_path)
    for content in (json.dumps(good).encode("utf-16"), b"\xff\xfe{}", b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{path} is not the configuration of a run of ours, or it is damaged"):
            read_run(tmp_path)
    shutil.copy(__file__, path)
    with pytest.raises(ValueError, match="config.json is not"):
        read_run(tmp_path)
