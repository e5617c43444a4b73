"""The wire contract: what comes in, what goes out, and the CloudEvents envelope around both."""
