"""Any network → Features: extraction, levels, adapters, names and weights, cards of saved networks."""
