"""The executor over Ray actors; nothing outside this folder imports ray, and importing this package does not either."""
