"""Learners, evaluation, reports and the command line ``python -m training``."""
