"""Norms, spectra, linear maps and similarities of features."""
