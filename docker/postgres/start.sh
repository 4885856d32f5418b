#!/bin/sh
# What the image runs: settings sized by the memory that the container may use, then the official entrypoint.
# pg_hba.conf, and what ALTER SYSTEM writes, stay in the data directory.
set -eu
conf=${TMPDIR:-/tmp}/postgresql.conf
settings=$(sh "$(dirname "$0")/tune.sh")
cat > "$conf" << END
listen_addresses = '*'
$settings
END
exec docker-entrypoint.sh postgres -c "config_file=$conf" "$@"
