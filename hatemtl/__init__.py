"""Trains, merges, tests and compares modular hate-speech classifiers on a small budget."""
