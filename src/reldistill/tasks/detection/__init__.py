"""Detection: labelled boxes around the objects of an image."""
