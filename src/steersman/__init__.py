"""Steersman aligns open language models: SteerLM (dials at inference) and Constitutional AI."""

__version__ = "0.1.0"
