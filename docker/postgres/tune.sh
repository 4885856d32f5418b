#!/bin/sh
# Prints Postgres settings for the store, sized by memory, as fleet.check() wants them. On a plain Debian server:
#   sh docker/postgres/tune.sh > /etc/postgresql/15/main/conf.d/nexmdm.conf
# usage: tune.sh [megabytes [database]]
#   megabytes: the memory to use; by default all that this machine or container has
#   database: the database of pg_cron; by default fleet
set -eu

usage() {
  echo "usage: tune.sh [megabytes [database]], megabytes a whole number from 512 to 9999999" >&2
  exit 2
}

# The smallest of the machine's memory and the limits of the container (cgroups version 2 and 1).
megabytes() {
  {
    sed -n 's/^MemTotal: *\([0-9]*\) kB$/\1/p' /proc/meminfo
    for limit in /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes; do
      # "max", or a number with more digits than any machine has bytes, means that there is no limit.
      [ ! -r "$limit" ] || sed -n 's/^\([0-9]\{1,16\}\)$/\1 1024/p' "$limit"
    done
  } | while read -r size unit; do echo $((size / ${unit:-1} / 1024)); done | sort -n | head -n 1
}

# clamp <value> <lower bound> <upper bound>
clamp() {
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
shared_buffers = $(clamp $((memory / 4)) 128 4096)MB
effective_cache_size = $((memory * 6 / 10))MB
work_mem = 8MB
maintenance_work_mem = $(clamp $((memory / 20)) 32 512)MB
max_wal_size = 2GB
autovacuum_naptime = 10s

# Without pgBouncer each worker opens POOL_MAX + 4. The archiver and people need some, too.
max_connections = 200
password_encryption = 'scram-sha-256'

shared_preload_libraries = 'pg_cron'
cron.database_name = '$database'
# Otherwise pg_cron logs in over a connection, which scram refuses.
cron.use_background_workers = on
cron.max_running_jobs = 8
# Jobs run in background workers, in addition to those of parallel queries.
max_worker_processes = $((16 + $(getconf _NPROCESSORS_ONLN)))

timezone = 'UTC'
log_timezone = 'UTC'
log_min_duration_statement = 250ms
log_line_prefix = '%m [%p] %q%u@%d %a '
log_checkpoints = on
log_autovacuum_min_duration = 10s
END
