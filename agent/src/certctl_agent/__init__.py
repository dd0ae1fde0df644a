"""The daemon beside the services: makes keys, deploys certificates, proves what is served."""
