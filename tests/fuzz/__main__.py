"""`python -m tests.fuzz --minutes 10`: the gateway under broken input."""

from tests.fuzz.gateway_fuzzer import main

main()
