"""The tiny language model: a transformer on arithmetic, trained by the bandits' estimators."""
