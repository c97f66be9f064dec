"""Result tables, plots, and where they were measured."""
