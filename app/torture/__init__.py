"""`python -m app torture`: the proof that limits hold, money is exact and no record is lost, run by anyone on his own install.

It starts servers and gateway processes of its own, lets many clients call while everything that may fail does, and then judges
with a second opinion: the scripted upstream's own invoice, and the clients' own notes.

1. `plan` draws what will be done from a seed: the schedule of faults.
2. `stage` starts the stores, the upstream, the gateways, and registers models and keys by the public admin API.
3. `clients` call and note what they were answered; `chaos` carries the schedule out meanwhile.
4. After quiet, `evidence` is read: the ledger, the sums, the counters, the invoice, the notes.
5. `judge` is a pure function from that evidence to violations. There must be none.

Nothing of the gateway imports this package, and nothing here shares the gateway's arithmetic.
"""
