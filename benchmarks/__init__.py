"""Measurements of speed and of learners."""
