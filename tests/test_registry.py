"""Component specs and registries: what they read, what they refuse, what they answer."""

import pytest

from sde_score.registry import Registry, parse_spec


def make():
    registry = Registry("predictor")

    @registry.register("langevin")
    class Langevin:
        """Langevin steps.

        More.
        """

        def __init__(self, sde, snr: float = 0.16, *, n_steps: int = 1, shape=None):
            self.sde, self.snr, self.n_steps, self.shape = sde, snr, n_steps, shape

    @registry.register("needy")
    def needy(sde, size):
        return size

    return registry


@pytest.mark.parametrize(
    "spec,expected",
    [
        ("ode", ("ode", {})),
        (" langevin ( snr = 0.16 ) ", ("langevin", {"snr": 0.16})),
        (
            "a(b=(1, 2), c='x', d=-1e-5, e=None, f=[True])",
            ("a", {"b": (1, 2), "c": "x", "d": -1e-5, "e": None, "f": [True]}),
        ),
        ("a()", ("a", {})),
    ],
)
def test_specs_are_read_as_literals(spec, expected):
    assert parse_spec(spec) == expected


@pytest.mark.parametrize(
    "spec,message",
    [
        ("langevin(0.16)", "argument without a name"),
        ("langevin(snr=__import__('os').system('true'))", "not a literal"),
        ("langevin(snr=x)", "in quotes"),
        ("langevin(snr=0.16", "Cannot read"),
        ("langevin(snr=1)(2)", "Write"),
        ("langevin(**{})", "without a name"),
        ("", "not a component spec"),
        ("1+1", "not a component spec"),
    ],
)
def test_anything_else_is_refused_and_never_run(spec, message):
    with pytest.raises(ValueError, match=message):
        parse_spec(spec)
    with pytest.raises(TypeError, match="string"):
        parse_spec(3)


def test_build_fills_what_the_constructor_names():
    built = make().build("langevin(snr=0.2)", "sde", n_steps=3, snr=9.0, unknown=1)
    assert (built.sde, built.snr, built.n_steps, built.shape) == ("sde", 0.2, 3, None)
    instance = object()
    assert make().build(instance) is instance


def test_unknown_names_and_arguments_answer_with_the_nearest():
    registry = make()
    with pytest.raises(ValueError, match="Unknown predictor 'langvin'. Did you mean 'langevin'"):
        registry.build("langvin", None)
    with pytest.raises(ValueError, match="no argument 'n_step'. Did you mean 'n_steps'"):
        registry.build("langevin(n_step=2)", None)
    with pytest.raises(ValueError, match=r"needs 'size': write \"needy\(size=...\)\""):
        registry.build("needy", None)


def test_a_name_is_taken_once():
    registry = make()
    with pytest.raises(ValueError, match="is taken by"):
        registry.register("langevin")(dict)


def test_describe_lists_name_settings_and_first_line():
    row = next(r for r in make().describe() if r["name"] == "langevin")
    assert row["signature"] == "(snr=0.16, *, n_steps=1, shape=None)" and row["doc"] == "Langevin steps."


def test_entry_points_are_loaded_when_asked_for(monkeypatch):
    from importlib import metadata

    loaded = []

    class Entry:
        name = "foreign"

        def load(self):
            loaded.append(1)
            return lambda a: {"a": a}

    monkeypatch.setattr(metadata, "entry_points", lambda group: [Entry()] if group == "g" else [])
    registry = Registry("thing", group="g")
    assert registry.names() == ["foreign"] and not loaded
    assert registry.build("foreign(a=1)") == {"a": 1} and loaded
