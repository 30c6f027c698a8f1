"""Score-based generative modelling through stochastic differential equations, with pluggable components."""

__version__ = "0.1.0"
