"""Side-by-side measurements on this machine: the worker, its peers, the reference's way, and the floor."""
