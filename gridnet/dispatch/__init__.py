"""The HTTP dispatcher: a service name in, ranked servers out, or the request relayed."""
