"""`python -m app bench`: what a call costs, measured by anyone on his own machine.

It starts an upstream, a load generator and a gateway with stores of their own, and compares what stands in one interleaved run: the
upstream alone ("direct"), nginx's bare `proxy_pass` where nginx is at hand (the floor), the gateway, and whatever else is named.

1. `plan` says what is measured: the scenarios, and for how long.
2. `stage` starts everything, pins gateways to one core and the rest to the others, and registers model, user and key by the public
   admin API, with every check switched on.
3. `load` (a process of its own) plays one scenario against one target; `processes` reads from the kernel what that cost the target.
4. `run` goes round the targets several times, `report` shows the medians beside each other.

A figure counts only as a ratio to another one of the same run: absolute times are the machine's. Nothing of the gateway imports this
package.
"""
