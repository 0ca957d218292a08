"""Work on pools, wherever they live."""
