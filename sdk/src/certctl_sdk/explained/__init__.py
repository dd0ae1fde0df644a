"""Why a certificate is in its state and what comes next, in sentences, from what the API says of it alone."""
