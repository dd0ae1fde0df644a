"""Certificates that were made elsewhere: found in files and directories, and recorded at a server."""
