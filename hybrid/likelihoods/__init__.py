"""What a model assigns to a text."""
