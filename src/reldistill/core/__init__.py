"""What the parts of reldistill hand to each other, guards that name the axes, and files written whole or not at all."""
