"""A whole farm under a seeded nemesis that kills, stops, cuts and repeats; then it is healed, drained and checked.

``python -m tests.chaos --seed 7 --workers 20 --servers 2 --videos 2000 --large 6 --seconds 180 --folder DIR``
"""
