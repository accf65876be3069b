"""Measurements of trained models: how well a predictor judges, how well a model obeys its attributes; the report."""
