"""Speed of training and generation, against baselines on the same weights; `python -m hybrid.bench --help`."""
