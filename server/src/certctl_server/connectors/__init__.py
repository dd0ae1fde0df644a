"""The program that connectors run in."""
