"""One step: terms, their course over training, their balance, and the Distiller."""
