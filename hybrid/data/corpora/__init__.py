"""Where documents come from: embedded corpora, generators, files, the Hub."""
