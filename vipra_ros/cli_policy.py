"""Commands that export, serve and time a policy; `cli.py` has the table they stand in."""

POLICY = ()
