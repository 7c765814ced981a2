"""
The client: fetches jobs, runs each once, reports (docs/protocols/scire.rst, The client's part).

It is a small program of blocking threads on the standard library: its promises are about files
and fsync, it talks to one server at a time, and hundreds of machines start it from cron.
"""
