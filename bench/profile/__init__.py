"""Where the time goes: recon with its steps timed, and under a sampling profiler."""
