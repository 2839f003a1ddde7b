"""Logs of other trainers, read into run folders."""
