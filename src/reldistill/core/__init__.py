"""What the parts of reldistill hand to each other, guards that name the axes, and files that are whole or not there."""
