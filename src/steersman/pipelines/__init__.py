"""Whole jobs: one training run, and the papers' algorithms stage by stage."""
