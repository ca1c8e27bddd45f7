"""Images of any task: files, decoding, samples, loaders, named data sets."""
