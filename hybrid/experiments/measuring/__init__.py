"""The models that experiments measure: which one, as it is or trained for the purpose; and what must be remembered."""
