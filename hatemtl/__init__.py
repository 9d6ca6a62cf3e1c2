"""hatemtl: train, merge, test and compare modular hate-speech classifiers on a small budget."""
