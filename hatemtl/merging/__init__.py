"""The arithmetic of merging: pure functions, LoRA updates in, one update out."""
