"""What can be read off features, as pure functions on tensors."""
