"""hatemtl: train, merge, fuse, test and compare modular hate-speech classifiers on a small budget."""
