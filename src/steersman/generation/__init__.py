"""Completing prompts and scoring continuations: the embedded engine, remote clients, constrained decoding."""
