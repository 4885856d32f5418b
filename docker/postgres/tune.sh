#!/bin/sh
# Settings of Postgres for the store, sized by memory, as fleet.check() wants them. On a plain Debian server:
#   sh docker/postgres/tune.sh > /etc/postgresql/15/main/conf.d/nexmdm.conf
# usage: tune.sh [megabytes [database]]
#   megabytes: default all that this machine or container has; database: the one that pg_cron works in, default fleet
set -eu

usage() {
  echo "usage: tune.sh [megabytes [database]], megabytes a whole number from 512 to 9999999" >&2
  exit 2
}

# The least of what the machine has and what a container may use of it (cgroups version 2 and 1).
megabytes() {
  {
    sed -n 's/^MemTotal: *\([0-9]*\) kB$/\1/p' /proc/meminfo
    for limit in /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes; do
      # "max", and more digits than any machine has, are no limits.
      [ ! -r "$limit" ] || sed -n 's/^\([0-9]\{1,16\}\)$/\1 1024/p' "$limit"
    done
  } | while read -r size unit; do echo $((size / ${unit:-1} / 1024)); done | sort -n | head -n 1
}

# What lies between two bounds.
within() {
  if [ "$1" -lt "$2" ]; then echo "$2"; elif [ "$1" -gt "$3" ]; then echo "$3"; else echo "$1"; fi
}

[ $# -le 2 ] || usage
memory=${1:-$(megabytes)}
database=${2:-fleet}
case $memory in '' | *[!0-9]* | ????????*) usage ;; esac
case $database in *[!A-Za-z0-9_-]*) usage ;; esac
[ "$memory" -ge 512 ] || usage

cat << END
# Written by docker/postgres/tune.sh for $memory MB of memory.
shared_buffers = $(within $((memory / 4)) 128 4096)MB
effective_cache_size = $((memory * 6 / 10))MB
work_mem = 8MB
maintenance_work_mem = $(within $((memory / 20)) 32 512)MB
max_wal_size = 2GB
autovacuum_naptime = 10s

# POOL_MAX + 4 of each worker without a pool, and some for the archiver and people.
max_connections = 200
password_encryption = 'scram-sha-256'

shared_preload_libraries = 'pg_cron'
cron.database_name = '$database'
# Otherwise pg_cron logs in by itself, which scram stops.
cron.use_background_workers = on
cron.max_running_jobs = 8
# Jobs run in background workers, beside those of parallel queries.
max_worker_processes = $((16 + $(getconf _NPROCESSORS_ONLN)))

timezone = 'UTC'
log_timezone = 'UTC'
log_min_duration_statement = 250ms
log_line_prefix = '%m [%p] %q%u@%d %a '
log_checkpoints = on
log_autovacuum_min_duration = 10s
END
