"""How many there are, and how many on each day."""
