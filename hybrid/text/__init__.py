"""Generation as text: what the command lines and the page of an unmasking show."""
