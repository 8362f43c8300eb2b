"""Images: datasets, their splits and digests."""
