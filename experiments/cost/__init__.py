"""What a network costs, and networks scaled to a cost."""
