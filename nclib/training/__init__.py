"""Training a grid of networks as one ensemble, measured all along, on disk if asked: see `nclib.train`."""
