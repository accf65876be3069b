"""Scorers: what a model says about conversations."""
