"""The benchmark: recon compared with one transaction per request, the raw database and a handler with no database.

make bench, or .venv/bin/python -m bench --help

plan        the series of a run: workload, system, connections
series      one series from start to end: empty database, warm-up, load, checks
load/       the load: workloads, their customers, wrk (identify.lua builds the requests), probe and watch
systems/    the systems under load: processes with an HTTP port, the raw database (rawdb), PostgreSQL itself
profile/    where the time goes: recon with its steps timed (timed) and under py-spy (samples)
report/     the figures, the targets that they are compared with, the page and the plot
beside      the rate that other clients keep beside a disturbance (a command of its own)
imports     the speed of an import, compared with COPY (a command of its own)
exports     the speed and memory of an export, compared with COPY (a command of its own)
"""
