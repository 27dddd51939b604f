"""Scheduler, client, server and queue in one thread and in virtual time, under faults that are drawn from one seed.

``python -m tests.simulation --seeds 500 --first 1``. The modules of the product run as they are, their Lua in a real
Valkey; the network, the clocks, the site, the bytes and the machines around them are made here. A seed that fails
does so again, event for event: ``--first SEED --seeds 1 -v`` prints what happened.
"""
