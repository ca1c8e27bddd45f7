"""What a method is: its name, what it needs, and the terms it makes for a pair of networks."""
