"""Merges: pure functions, LoRA updates in, one update out."""
