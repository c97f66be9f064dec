"""Everything that only a GPU can show, by one command: `python -m hybrid.bench gpu --help`, docs/gpu.md."""
