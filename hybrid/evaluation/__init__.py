"""A trained model judged: likelihoods, decoders, texts."""
