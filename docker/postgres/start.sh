#!/bin/sh
# The image's entrypoint: it sizes the settings by the memory that the container may use, and then runs the official entrypoint.
# pg_hba.conf and the settings of ALTER SYSTEM stay in the data directory.
set -eu
conf=${TMPDIR:-/tmp}/postgresql.conf
settings=$(sh "$(dirname "$0")/tune.sh")
cat > "$conf" << END
listen_addresses = '*'
$settings
END
exec docker-entrypoint.sh postgres -c "config_file=$conf" "$@"
