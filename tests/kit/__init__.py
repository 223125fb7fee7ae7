"""The test kit: a scripted upstream, a fault proxy, processes, a clock, canaries and raw clients.

Nothing here imports `app`: the kit looks at the gateway from outside, so that it cannot share its mistakes.
"""
