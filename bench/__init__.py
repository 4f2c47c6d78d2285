"""The benchmark: recon beside its plain form, the raw database and a handler with no database.

make bench, or .venv/bin/python -m bench --help

plan        which series there are: workload, system, connections
series      one series, start to end: empty database, warm-up, load, checks
workloads   what is asked (identify.lua builds the requests); people: who the customers are
systems     what is asked of: the processes with an HTTP port
rawdb       what has no HTTP: pgbench and a bare SELECT
load        wrk; probe and watch look on meanwhile
profile     where the time goes: recon with its steps timed (timed) and under py-spy; limits says what that shows
postgres    the database server of the benchmark
results     the figures; bars: what they are held against; report: the page and the plot
"""
