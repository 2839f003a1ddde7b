"""Metrics and their uncertainty: arrays in, numbers out."""
