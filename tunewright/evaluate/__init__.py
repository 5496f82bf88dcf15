"""Evaluation: numbers with their uncertainty."""
