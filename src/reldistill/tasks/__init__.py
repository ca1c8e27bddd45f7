"""What images are labelled for: a folder each."""
