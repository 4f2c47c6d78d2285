"""The benchmark: recon compared with one transaction per request, the raw database and a handler with no database.

make bench, or .venv/bin/python -m bench --help

plan        which series there are: workload, system, connections
series      one series, start to end: empty database, warm-up, load, checks
load/       what is asked: workloads, their customers, wrk (identify.lua builds the requests); probe and watch look on
systems/    what is asked of: processes with an HTTP port, the raw database (rawdb), PostgreSQL itself
profile/    where the time goes: recon with its steps timed (timed) and under py-spy (samples)
report/     the figures, the targets that they are compared with, the page and the plot
beside      the rate that other clients keep beside a disturbance (a command of its own)
"""
