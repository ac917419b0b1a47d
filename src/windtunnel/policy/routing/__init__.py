"""Which replica: routers over the ledger of a fleet."""
