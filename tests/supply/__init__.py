"""What this project takes from others: which packages, proved by which hashes, and what is known against them."""
