"""The Hub: what every exchange with it shares."""
